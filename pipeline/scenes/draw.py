"""Turn a layout into a photograph-like JPEG: background, objects, shadow, exposure, sensor noise.

Drawn `SUPERSAMPLING` times larger in one uint8 array and reduced by Pillow. About 3 ms a picture of 128 pixels.
"""

import io
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.scenes import specification as spec
from pipeline.scenes.layout import PlacedObject

_MAX_SHIFT = 35  # a background is at most this much brighter or darker than its tone, of 255
_LIGHT_LEVELS = 32
_INK = np.array([46.0, 42.0, 52.0], dtype=np.float32)
_CREAM = np.array([250.0, 244.0, 232.0], dtype=np.float32)
_LIGHT_COLORS = frozenset({"orange", "yellow", "pink", "white"})


def draw_jpeg(placed: list[PlacedObject], rng: Random, noise: np.random.Generator, image_size: int) -> bytes:
    """Draw one scene and compress it; `rng` makes the choices, `noise` the textures and the sensor noise."""
    canvas = draw_background(rng, noise, image_size)
    for item in placed:
        _draw_object(canvas, item, rng, image_size / spec.REFERENCE_SIZE * spec.SUPERSAMPLING)
    reduced = np.asarray(canvas.reduce(spec.SUPERSAMPLING))
    pixels = noise.standard_normal(reduced.shape, dtype=np.float32)
    pixels *= rng.uniform(*spec.NOISE_SIGMA)
    pixels += reduced * np.float32(rng.uniform(0.92, 1.06))
    exposed = np.clip(np.rint(pixels, out=pixels), 0, 255, out=pixels).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(exposed).save(buffer, format="JPEG", quality=rng.randint(*spec.JPEG_QUALITY))
    return buffer.getvalue()


def draw_background(rng: Random, noise: np.random.Generator, image_size: int) -> Image.Image:
    """One of the seven kinds of background, supersampled. Its structure is coarser, finer or fainter than any
    object's pattern."""
    side = image_size * spec.SUPERSAMPLING
    px = side / spec.REFERENCE_SIZE
    tone = np.array(rng.choice(spec.BACKGROUND_COLORS), dtype=np.int16)
    kind = rng.choice(spec.BACKGROUNDS)
    shift: NDArray[np.floating[Any]]
    if kind == "flat":
        shift = np.zeros((1, 1), dtype=np.float32)
    elif kind == "gradient":
        shift = rng.uniform(12, 22) * _ramp(rng.uniform(0, 2 * np.pi), side)
    elif kind == "clouds":
        shift = _enlarged(noise.uniform(-20, 20, (6, 6)), side, Image.Resampling.BICUBIC)
    elif kind == "grain":
        coarse = image_size * 2 // 5
        shift = _enlarged(noise.normal(0, 9, (coarse, coarse)), side, Image.Resampling.BILINEAR)
    elif kind == "tiles":
        shift = rng.uniform(7, 12) * _checker(side, rng.uniform(18, 28) * px, rng.uniform(0, 0.5 * np.pi))
    elif kind == "bands":
        wave = _phase(side, rng.uniform(36, 60) * px, rng.uniform(0, np.pi))
        shift = rng.uniform(7, 12) * np.where(wave < 0.5, np.float32(1), np.float32(-1))
    else:
        shift = _scratches(rng, side, px)
    levels = np.arange(-_MAX_SHIFT, _MAX_SHIFT + 1)
    brightness = np.clip(shift, -_MAX_SHIFT, _MAX_SHIFT) + np.float32(_MAX_SHIFT)
    return _painted(np.broadcast_to(brightness.astype(np.uint8), (side, side)), tone + levels[:, None])


def _scratches(rng: Random, side: int, px: float) -> NDArray[np.float32]:
    """A few straight lines through the whole square, brighter or darker than it."""
    image = Image.new("F", (side, side))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(5, 9)):
        x, y, angle = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(0, np.pi)
        dx, dy = 2 * side * np.cos(angle), 2 * side * np.sin(angle)
        width = round(rng.uniform(0.8, 1.8) * px)
        draw.line((x - dx, y - dy, x + dx, y + dy), fill=rng.uniform(-26, 26), width=width)
    return np.asarray(image)


def _draw_object(canvas: Image.Image, item: PlacedObject, rng: Random, px: float) -> None:
    mask = item.masks.solid
    height = mask.shape[0]
    base = np.array(spec.COLORS[item.facts.color], dtype=np.float32)
    base = base + np.array([rng.uniform(-9, 9) for _ in range(3)], dtype=np.float32)
    second = _INK if item.facts.color in _LIGHT_COLORS else _CREAM
    colors = np.stack([base, second, base * 0.35, base * 0.4 + 255 * 0.6, base * 0.42])
    light = np.linspace(1.06, 0.9, _LIGHT_LEVELS, dtype=np.float32)  # from above
    palette = colors[:, None, :] * light[:, None]  # [color, light, 3]

    which = np.zeros(mask.shape, dtype=np.uint8)  # index into colors
    if item.facts.pattern is not None:
        which[_pattern(item.facts.pattern, mask.shape, rng, px)] = 1
    for index, detail in ((2, item.masks.dark), (3, item.masks.light)):
        if detail is not None:
            which[detail] = index
    which[_border(mask, round(1.2 * px))] = 4
    which *= np.uint8(_LIGHT_LEVELS)
    which += (np.arange(height) * _LIGHT_LEVELS // height).astype(np.uint8)[:, None]

    alpha = mask.astype(np.uint8)
    offset = round(1.6 * px)
    shadow = Image.fromarray(alpha * np.uint8(72))
    canvas.paste((0, 0, 0), (item.left + offset, item.top + offset), shadow)
    canvas.paste(
        _painted(which, palette.reshape(-1, 3)), (item.left, item.top), Image.fromarray(alpha * np.uint8(255))
    )


def _painted(indices: NDArray[np.uint8], palette: NDArray[Any]) -> Image.Image:
    """An RGB image from indices into at most 256 colours: faster than arithmetic on three channels."""
    image = Image.fromarray(indices)
    image.putpalette(np.clip(palette, 0, 255).astype(np.uint8).tobytes())
    return image.convert("RGB")


def _pattern(name: str, shape: tuple[int, ...], rng: Random, px: float) -> NDArray[np.bool_]:
    """Where the second colour of a pattern goes, bool of this shape."""
    side = max(shape)
    angle = rng.uniform(0, np.pi)
    if name == "striped":
        where = _phase(side, rng.uniform(*spec.STRIPE_PERIOD_PX) * px, angle) < 0.45
    elif name == "dotted":
        period = rng.uniform(*spec.DOT_PERIOD_PX) * px
        u, v = (_phase(side, period, angle + turn) - 0.5 for turn in (0, 0.5 * np.pi))
        where = u * u + v * v < 0.32**2
    else:
        where = _checker(side, 0.5 * rng.uniform(*spec.CHECK_PERIOD_PX) * px, angle) < 0
    return where[: shape[0], : shape[1]]


def _border(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """The mask's own pixels within about `width` of its edge."""
    padded = np.pad(mask, width)
    inner = mask.copy()
    diagonal = round(0.7 * width)
    for dy, dx in ((0, width), (width, 0), (diagonal, diagonal), (diagonal, -diagonal)):
        for sign in (1, -1):
            y, x = width + sign * dy, width + sign * dx
            inner &= padded[y : y + mask.shape[0], x : x + mask.shape[1]]
    return mask & ~inner


def _ramp(angle: float, side: int) -> NDArray[np.float32]:
    """From -1 to 1 across the square in this direction, [side, side]."""
    line = np.linspace(-1, 1, side, dtype=np.float32)
    ramp: NDArray[np.float32] = line * np.float32(np.cos(angle)) + line[:, None] * np.float32(np.sin(angle))
    return ramp


def _phase(side: int, period: float, angle: float, start: float = 0.0) -> NDArray[np.float32]:
    """Position within a period along a direction, [side, side] in 0..1."""
    wave = _ramp(angle, side)
    wave *= np.float32(side / (2 * period))
    wave += np.float32(start)
    wave -= np.floor(wave)
    return wave


def _checker(side: int, cell: float, angle: float) -> NDArray[np.float32]:
    """A turned chessboard of -1 and 1, [side, side]."""
    u, v = (_phase(side, 2 * cell, angle + turn) < 0.5 for turn in (0, 0.5 * np.pi))
    return np.where(u ^ v, np.float32(1), np.float32(-1))


def _enlarged(values: NDArray[np.float64], side: int, resampling: Image.Resampling) -> NDArray[np.float32]:
    image = Image.fromarray(values.astype(np.float32)).resize((side, side), resampling)
    return np.asarray(image)
