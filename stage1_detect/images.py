"""Decode one picture file into upright RGB pixels, whatever file it came in.

Every failure becomes one `ImageReadError` that says why, so that a batch job can note the picture and go on.
Colours are those that a viewer without colour management shows: ICC profiles are not applied. A 128-pixel
JPEG takes about 0.2 ms, the look for an EXIF orientation included.
"""

import functools
import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from store_schema.errors import ImageReadError

MAX_PIXELS = 2**28
"""Pictures with more pixels are refused: 268 megapixels decode to 0.8 GB, and the largest phone cameras
make 201."""

MAX_FILE_BYTES = 2**30
"""Files with more bytes are refused: MAX_PIXELS without any compression take 0.8 GB."""

# Formats that hold photographs. The others that Pillow knows are left out on purpose: EPS starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "MPO", "JPEG2000", "AVIF")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_pillow_limit = threading.Lock()


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """A picture in memory, and what had to be done to its file's content."""

    pixels: NDArray[np.uint8]
    """[H, W, 3] RGB, upright, writable."""
    notes: tuple[str, ...]
    """Words of `store_schema.layout.IMAGE_NOTES`: turned by EXIF, first of several frames."""


def load_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode a picture file into [H, W, 3] uint8; see `decode_image`. Errors: `ImageReadError`."""
    return decode_image(read_file(path), printable(path), max_pixels=max_pixels).pixels


def read_file(path: str | Path) -> bytes:
    """The bytes of a picture file, read at once, so that a file that changes meanwhile is one or the other.

    Errors: `ImageReadError` with path and reason: missing, unreadable, empty, no regular file, too large.
    """
    name = printable(path)
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            fault = _fault(os.fstat(file.fileno()))
            content = file.read() if fault is None else b""
    except OSError as error:
        raise ImageReadError(f"{name}: cannot be opened ({error.strerror})") from error
    if fault is not None:
        raise ImageReadError(f"{name}: {fault}")
    return content


def decode_image(content: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode a picture, turned as its EXIF orientation says.

    The content decides the format, not the file's ending. Grey, palette and CMYK become RGB; transparent
    parts show white; 16 bits are reduced to 8 by scaling; of an animation the first frame is taken.

    Args:
        content: the file.
        name: for messages.
        max_pixels: width times height above which a picture is refused before it is decoded.

    Errors: `ImageReadError` with name and reason: truncated, no picture, too large.
    """
    try:
        with _own_pixel_limit():
            image: Image.Image = Image.open(io.BytesIO(content), formats=_known_formats())
        _check_size(image.size, max_pixels, name)
        notes = _notes(image)
        image.load()
        return DecodedImage(np.array(_to_rgb(_turn_upright(image))), notes)
    except ImageReadError:
        raise
    except UnidentifiedImageError as error:
        raise ImageReadError(f"{name}: not a picture in any format that is read here {_KNOWN}") from error
    except MemoryError:
        raise
    except Exception as error:
        # Decoders meet hostile bytes: OSError, SyntaxError, struct.error, ValueError, EOFError, ... all happen.
        raise ImageReadError(f"{name}: cannot be decoded ({error or type(error).__name__})") from error


def printable(path: str | Path) -> str:
    r"""The path as valid UTF-8 in one line: bytes that are no UTF-8 become `\xff`, line breaks `\n`."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe that nobody writes into would block for ever


_KNOWN = f"({', '.join(_FORMATS)})"


def _fault(status: os.stat_result) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_size == 0:
        return "the file is empty (0 bytes)"
    if status.st_size > MAX_FILE_BYTES:
        return f"{status.st_size:,} bytes are over the limit of {MAX_FILE_BYTES:,} bytes"
    return None


def _check_size(size: tuple[int, int], max_pixels: int, name: str) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageReadError(
            f"{name}: {width} x {height} pixels are over the limit of {max_pixels:,} pixels; reduce the picture"
        )


@functools.cache
def _known_formats() -> tuple[str, ...]:
    """Those of our formats that this build of Pillow decodes: AVIF, WebP and JPEG 2000 may be missing."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextmanager
def _own_pixel_limit() -> Iterator[None]:
    """Switch Pillow's pixel limit off while a header is read: it warns at a third of ours and knows no option."""
    with _pillow_limit:
        saved, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = saved


def _notes(image: Image.Image) -> tuple[str, ...]:
    """What is about to be done, asked before the pixels are loaded."""
    notes = ("exif_turned",) if _orientation(image) in _UPRIGHT else ()
    try:
        several = bool(getattr(image, "is_animated", False))
    except Exception:  # broken beyond the first frame, which is all that is wanted
        several = True
    return (*notes, "first_frame") if several else notes


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF block beside good pixels: shown as stored, as every viewer does
        return 1


def _turn_upright(image: Image.Image) -> Image.Image:
    # Asked after `load`: Pillow turns TIFF pictures itself while loading and then drops the tag.
    method = _UPRIGHT.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _reduce_depth(image)
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert(
            "RGB"
        )
    return image.convert("RGB")


def _reduce_depth(image: Image.Image) -> Image.Image:
    """Scale 16 bits to 8; Pillow's own conversion clips at 255, which shows nearly all of a picture white."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F" or low < 0 or high > 65535:
        raise ValueError(f"its pixels lie between {low:g} and {high:g}, not within 8 or 16 bits")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
