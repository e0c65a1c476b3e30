"""Generated scenes: a data set of pictures, objects, captions and questions drawn from a seed.

In reading order: `specification` (what may be drawn), `shapes`, `layout` (where), `draw` (pixels), `facts`
(what is true), `captions`, `questions`, `picture` (one picture whole), `generate` (a data set).
"""
