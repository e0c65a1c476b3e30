"""Published detectors: their files read, their tensors renamed into ours, their preprocessing and rules written down.

Each module is one kind of file, with a function `convert` that `butd convert-weights` calls: it reads, checks and
returns a state dict, what model.json says, and notes; it writes nothing.
"""
