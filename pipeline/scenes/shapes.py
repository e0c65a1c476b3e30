"""Outlines of the fourteen object classes and their masks.

A shape is a list of closed polygons in any coordinates (y points down): solid parts, holes, and details that
are painted on top in a darker or lighter tone. Only `rasterise` knows about pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Polygon = NDArray[np.float64]  # [points, 2], x and y


@dataclass(frozen=True)
class Shape:
    """An object's outline; `turns` says how freely it may be rotated, in degrees either way."""

    solids: tuple[Polygon, ...]
    holes: tuple[Polygon, ...] = ()
    dark: tuple[Polygon, ...] = ()
    light: tuple[Polygon, ...] = ()
    turns: float = 12.0
    quarter_turns: bool = False


@dataclass(frozen=True)
class ObjectMasks:
    """Masks of one object, all bool [height, width] in supersampled pixels, tight around the solid part."""

    solid: NDArray[np.bool_]
    dark: NDArray[np.bool_] | None = field(default=None)
    light: NDArray[np.bool_] | None = field(default=None)


@cache
def shape_of(name: str) -> Shape:
    """The shape of an object class by its name in `OBJECT_NAMES`."""
    return _SHAPES[name]()


def transformed(shape: Shape, *, degrees: float, flip: bool, stretch: float) -> Shape:
    """Mirror, stretch along x and rotate a shape."""
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix = np.diag([-stretch if flip else stretch, 1.0]) @ rotation

    def move(polygons: tuple[Polygon, ...]) -> tuple[Polygon, ...]:
        return tuple(polygon @ matrix for polygon in polygons)

    return Shape(move(shape.solids), move(shape.holes), move(shape.dark), move(shape.light))


def extent(shape: Shape) -> tuple[float, float]:
    """Width and height of the solid part."""
    points = np.concatenate(shape.solids)
    width, height = points.max(axis=0) - points.min(axis=0)
    return float(width), float(height)


def rasterise(shape: Shape, width: int, height: int) -> ObjectMasks:
    """Fill a shape into masks of this many pixels, or one or two fewer where a sharp tip falls between pixels."""
    points = np.concatenate(shape.solids)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = (np.array([width, height]) - 1) / (high - low)

    def fill(solids: tuple[Polygon, ...], holes: tuple[Polygon, ...] = ()) -> NDArray[np.bool_]:
        image = Image.new("L", (width, height))
        draw = ImageDraw.Draw(image)
        for polygons, value in ((solids, 1), (holes, 0)):
            for polygon in polygons:
                draw.polygon(((polygon - low) * scale).ravel().tolist(), fill=value)
        return np.asarray(image).astype(bool)

    solid = fill(shape.solids, shape.holes)
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    tight = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return ObjectMasks(
        solid=solid[tight],
        dark=fill(shape.dark)[tight] if shape.dark else None,
        light=fill(shape.light)[tight] if shape.light else None,
    )


def _points(*pairs: tuple[float, float]) -> Polygon:
    return np.array(pairs, dtype=np.float64)


def _ellipse(x: float, y: float, radius_x: float, radius_y: float | None = None, points: int = 40) -> Polygon:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius_y = radius_x if radius_y is None else radius_y
    return np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1)


def _rectangle(x1: float, y1: float, x2: float, y2: float) -> Polygon:
    return _points((x1, y1), (x2, y1), (x2, y2), (x1, y2))


def _arrow() -> Shape:
    contour = _points((-1, -0.3), (0.05, -0.3), (0.05, -0.8), (1, 0), (0.05, 0.8), (0.05, 0.3), (-1, 0.3))
    return Shape((contour,), quarter_turns=True)


def _ball() -> Shape:
    return Shape((_ellipse(0, 0, 1),), light=(_ellipse(-0.38, -0.45, 0.26, 0.17),))


def _boat() -> Shape:
    hull = _points((-1, 0.3), (1, 0.3), (0.6, 0.95), (-0.6, 0.95))
    mast = _rectangle(-0.13, -0.2, 0.07, 0.4)
    main_sail = _points((0.07, -1), (0.07, 0.14), (0.82, 0.14))
    small_sail = _points((-0.13, -0.8), (-0.13, 0.14), (-0.72, 0.14))
    return Shape((hull, mast, main_sail, small_sail), dark=(_rectangle(-0.13, -0.8, 0.07, 0.3),))


def _cross() -> Shape:
    return Shape((_rectangle(-0.36, -1, 0.36, 1), _rectangle(-1, -0.36, 1, 0.36)))


def _cup() -> Shape:
    body = _points((-1, -0.85), (0.45, -0.85), (0.35, 0.75), (0.2, 0.9), (-0.75, 0.9), (-0.9, 0.75))
    handle, gap = _ellipse(0.45, -0.08, 0.55, 0.52), _ellipse(0.52, -0.08, 0.24, 0.25)
    rim = _ellipse(-0.275, -0.72, 0.62, 0.1)
    return Shape((body, handle), holes=(gap,), dark=(rim,))


def _fish() -> Shape:
    body = _ellipse(-0.2, 0, 0.8, 0.66)
    tail = _points((0.3, 0), (1, -0.62), (0.82, 0), (1, 0.62))
    fin = _points((-0.4, -0.5), (0.1, -0.85), (0.25, -0.4))
    return Shape((body, tail, fin), dark=(_ellipse(-0.6, -0.14, 0.11),))


def _heart() -> Shape:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return Shape((np.stack([16 * np.sin(t) ** 3, y], axis=1) / 16,))


def _house() -> Shape:
    roof = _points((-1, -0.1), (0, -1), (1, -0.1))
    door, window = _rectangle(-0.52, 0.3, -0.1, 0.95), _rectangle(0.18, 0.22, 0.52, 0.56)
    return Shape((roof, _rectangle(-0.78, -0.12, 0.78, 0.95)), dark=(door, window), turns=8.0)


def _moon() -> Shape:
    outer = np.linspace(np.deg2rad(50), np.deg2rad(310), 40)
    inner = np.linspace(np.deg2rad(290), np.deg2rad(70), 30)
    tip_x, tip_y = np.cos(outer[0]), np.sin(outer[0])
    radius = tip_y / np.sin(inner[-1])
    center_x = tip_x - radius * np.cos(inner[-1])
    arc = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    back = np.stack([center_x + radius * np.cos(inner), radius * np.sin(inner)], axis=1)
    return Shape((np.concatenate([arc, back]),), turns=18.0)


def _ring() -> Shape:
    return Shape((_ellipse(0, 0, 1),), holes=(_ellipse(0, 0, 0.5),))


def _square() -> Shape:
    return Shape((_rectangle(-1, -1, 1, 1),))


def _star() -> Shape:
    angles = np.deg2rad(np.arange(10) * 36 - 90)
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
    return Shape((np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1),), turns=18.0)


def _tree() -> Shape:
    crown = (_ellipse(-0.42, -0.12, 0.46), _ellipse(0.42, -0.12, 0.46), _ellipse(0, -0.5, 0.52))
    trunk = _rectangle(-0.17, 0.1, 0.17, 1.05)
    return Shape((*crown, trunk), dark=(_rectangle(-0.17, 0.34, 0.17, 1.1),), turns=8.0)


def _triangle() -> Shape:
    return Shape((_points((0, -1), (1, 0.75), (-1, 0.75)),))


_SHAPES: dict[str, Callable[[], Shape]] = {
    "arrow": _arrow, "ball": _ball, "boat": _boat, "cross": _cross, "cup": _cup, "fish": _fish, "heart": _heart,
    "house": _house, "moon": _moon, "ring": _ring, "square": _square, "star": _star, "tree": _tree,
    "triangle": _triangle,
}  # fmt: skip
