"""What a generated scene may hold: names, colours, sizes, margins. The text of `docs/scenes.md` in numbers.

Scores on scenes mean something only while these stay as they are: a change of any value that alters a picture,
a caption or a question is a new `SPECIFICATION_VERSION`. Lengths are fractions of the picture's side unless
the name says `_px`; those are pixels of a picture of 128 and grow with it.
"""

SPECIFICATION_VERSION = 1

MIN_IMAGE_SIZE = 64
MAX_IMAGE_SIZE = 1024
DEFAULT_IMAGE_SIZE = 128
REFERENCE_SIZE = 128
SUPERSAMPLING = 3
"""Pictures are drawn this many times larger and reduced, so that edges are smooth and boxes exact to 1/3 pixel."""

OBJECT_NAMES = (
    "arrow", "ball", "boat", "cross", "cup", "fish", "heart",
    "house", "moon", "ring", "square", "star", "tree", "triangle",
)  # fmt: skip

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (208, 30, 38),
    "orange": (250, 135, 15),
    "yellow": (252, 222, 40),
    "green": (35, 150, 60),
    "blue": (25, 100, 225),
    "purple": (135, 40, 165),
    "pink": (255, 145, 195),
    "white": (248, 248, 244),
}
PATTERNS = ("striped", "dotted", "checked")
SIZES = ("small", "large")
ATTRIBUTE_NAMES = (*COLORS, *PATTERNS, *SIZES)

MIN_OBJECTS, MAX_OBJECTS = 2, 6
MIN_SIDE, MAX_SIDE = 1 / 6, 1 / 2
"""Both sides of every box lie in this range."""
MAX_HIDDEN = 0.30
"""Largest share of an object's own pixels that objects in front of it may cover."""

SMALL_LONG_SIDE, LARGE_LONG_SIDE = 0.27, 0.38
"""Longer side of the box: small up to the first, large from the second; between them no size is stated."""

PATTERN_MIN_SIDE = 0.24
"""Shorter side from which an object may have a pattern: below it a pattern cannot be told."""
STRIPE_PERIOD_PX = (7.0, 10.0)
DOT_PERIOD_PX = (8.5, 11.0)
CHECK_PERIOD_PX = (9.0, 12.0)

BACKGROUNDS = ("flat", "gradient", "clouds", "grain", "tiles", "bands", "lines")
BACKGROUND_COLORS: tuple[tuple[int, int, int], ...] = (
    (58, 64, 74), (92, 98, 106), (128, 130, 134), (168, 170, 172),
    (70, 78, 66), (116, 124, 106), (160, 166, 148),
    (84, 74, 66), (136, 122, 108), (178, 166, 150),
    (66, 82, 92), (112, 130, 140), (150, 166, 176),
    (92, 82, 98), (142, 132, 146),
)  # fmt: skip
"""Muted tones; each is at least 28 CIELAB units away from every object colour (a test holds it)."""

NOISE_SIGMA = (2.0, 7.0)
"""Standard deviation of the sensor noise, of 255."""
JPEG_QUALITY = (80, 95)

RELATION_MARGIN = 0.14
"""Least distance of two centres along an axis for one to be left of, right of, above or below the other."""
SIDE_CLEAR_MARGIN = 0.04
"""An object less than this to the left of another is not left of it; between the two margins nothing is asked."""
PLACE_OUTER, PLACE_MIDDLE = 0.36, (0.42, 0.58)
"""A centre below the first (or above 1 minus it) is at an edge; within the second it is in the middle."""
LARGER_AREA_RATIO = 1.6
"""Least ratio of two boxes' areas for one object to be the larger."""
