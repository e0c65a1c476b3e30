"""Which objects a scene holds, and where: random choices within the specification.

Objects are placed one after the other, a later one in front. A place is refused when it would hide more than
`MAX_HIDDEN` of any object behind it, counted on the real masks.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from random import Random

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes import specification as spec
from pipeline.scenes.shapes import ObjectMasks, extent, rasterise, shape_of, transformed

_TRIES_PER_SIDE = 12
_SHRINK = 0.85
_TIP_PIXELS = 2  # what `rasterise` may take off a side


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object as captions, questions and tables see it. The box is xyxy in pixels, hidden parts included."""

    name: str
    color: str
    pattern: str | None
    box: tuple[float, float, float, float]
    image_size: int

    @cached_property
    def size(self) -> str | None:
        """small, large, or None in the gap between the two."""
        x1, y1, x2, y2 = self.box
        long_side = max(x2 - x1, y2 - y1) / self.image_size
        if long_side <= spec.SMALL_LONG_SIDE:
            return "small"
        return "large" if long_side >= spec.LARGE_LONG_SIDE else None

    @cached_property
    def attributes(self) -> tuple[str, ...]:
        """Every attribute that is true of the object: colour, then pattern and size where it has them."""
        return tuple(value for value in (self.color, self.pattern, self.size) if value is not None)

    @cached_property
    def center(self) -> tuple[float, float]:
        """Centre of the box as fractions of the picture's side."""
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2 / self.image_size, (y1 + y2) / 2 / self.image_size

    @cached_property
    def area(self) -> float:
        """Area of the box as a fraction of the picture's."""
        x1, y1, x2, y2 = self.box
        return (x2 - x1) * (y2 - y1) / self.image_size**2


@dataclass(frozen=True)
class PlacedObject:
    """An object with its masks; `left` and `top` are supersampled pixels, `hidden` the share of it not seen."""

    facts: SceneObject
    masks: ObjectMasks
    left: int
    top: int
    hidden: float


@dataclass(frozen=True)
class _Candidate:
    name: str
    color: str
    pattern: str | None
    masks: ObjectMasks
    left: int
    top: int


def draw_layout(rng: Random, image_size: int) -> list[PlacedObject]:
    """Choose and place the objects of one scene, those behind first."""
    count = rng.randint(spec.MIN_OBJECTS, spec.MAX_OBJECTS)
    names = _draw_kinds(rng, spec.OBJECT_NAMES, count, repeat_share=0.5)
    colors = _draw_kinds(rng, tuple(spec.COLORS), count, repeat_share=0.35)
    while True:
        placed = _place_all(rng, names, colors, image_size)
        if placed is not None:
            return placed


def _draw_kinds(rng: Random, kinds: tuple[str, ...], count: int, repeat_share: float) -> list[str]:
    """`count` of the kinds: freely, or in `repeat_share` of the scenes from two or three only, so that there
    is something to count."""
    pool = rng.sample(kinds, rng.randint(2, 3)) if rng.random() < repeat_share else kinds
    return [rng.choice(pool) for _ in range(count)]


def _place_all(
    rng: Random, names: list[str], colors: list[str], image_size: int
) -> list[PlacedObject] | None:
    canvas_side = image_size * spec.SUPERSAMPLING
    owner = np.full((canvas_side, canvas_side), -1, dtype=np.int8)  # which object is seen at a pixel
    areas: list[int] = []
    seen: list[int] = []
    candidates: list[_Candidate] = []
    for index, (name, color) in enumerate(zip(names, colors, strict=True)):
        candidate = _find_place(rng, name, color, owner, areas, seen)
        if candidate is None:
            return None
        mask = candidate.masks.solid
        view = _window(owner, candidate)
        for behind, taken in enumerate(_covered(view, mask, index)):
            seen[behind] -= taken
        view[mask] = index
        areas.append(int(mask.sum()))
        seen.append(areas[-1])
        candidates.append(candidate)
    return [
        PlacedObject(_facts(candidate, image_size), candidate.masks, candidate.left, candidate.top, 1 - s / a)
        for candidate, s, a in zip(candidates, seen, areas, strict=True)
    ]


def _find_place(
    rng: Random, name: str, color: str, owner: NDArray[np.int8], areas: list[int], seen: list[int]
) -> _Candidate | None:
    canvas_side = owner.shape[0]
    largest = canvas_side * spec.MAX_SIDE
    while True:
        masks = _draw_masks(rng, name, canvas_side, largest)
        if masks is None:
            return None
        height, width = masks.solid.shape
        pattern = None
        if min(width, height) >= spec.PATTERN_MIN_SIDE * canvas_side and rng.random() < 0.6:
            pattern = rng.choice(spec.PATTERNS)
        for _ in range(_TRIES_PER_SIDE):
            left, top = rng.randint(0, canvas_side - width), rng.randint(0, canvas_side - height)
            candidate = _Candidate(name, color, pattern, masks, left, top)
            taken = _covered(_window(owner, candidate), masks.solid, len(areas))
            if all(
                seen_pixels - lost >= (1 - spec.MAX_HIDDEN) * area
                for seen_pixels, lost, area in zip(seen, taken, areas, strict=True)
            ):
                return candidate
        largest = max(width, height) * _SHRINK


def _draw_masks(rng: Random, name: str, canvas_side: int, largest: float) -> ObjectMasks | None:
    """A turned shape whose longer side is at most `largest` supersampled pixels; None where no legal size is."""
    shape = shape_of(name)
    degrees = rng.uniform(-shape.turns, shape.turns) + (90 * rng.randrange(4) if shape.quarter_turns else 0)
    shape = transformed(shape, degrees=degrees, flip=rng.random() < 0.5, stretch=rng.uniform(0.9, 1.1))
    width, height = extent(shape)
    least = math.ceil(canvas_side * spec.MIN_SIDE) + _TIP_PIXELS
    shortest = least * max(width, height) / min(width, height)
    largest = min(largest, math.floor(canvas_side * spec.MAX_SIDE))
    if shortest > largest:
        return None
    long_side = rng.uniform(shortest, largest)
    scale = long_side / max(width, height)
    return rasterise(shape, max(least, int(width * scale)), max(least, int(height * scale)))


def _window(owner: NDArray[np.int8], candidate: _Candidate) -> NDArray[np.int8]:
    height, width = candidate.masks.solid.shape
    return owner[candidate.top : candidate.top + height, candidate.left : candidate.left + width]


def _covered(view: NDArray[np.int8], mask: NDArray[np.bool_], num_behind: int) -> list[int]:
    """How many pixels the mask takes from each object behind it."""
    if view.max() < 0:
        return [0] * num_behind
    taken: list[int] = np.bincount(view[mask] + 1, minlength=num_behind + 1)[1:].tolist()
    return taken


def _facts(candidate: _Candidate, image_size: int) -> SceneObject:
    height, width = candidate.masks.solid.shape
    corners = (candidate.left, candidate.top, candidate.left + width, candidate.top + height)
    x1, y1, x2, y2 = (corner / spec.SUPERSAMPLING for corner in corners)
    return SceneObject(
        name=candidate.name,
        color=candidate.color,
        pattern=candidate.pattern,
        box=(x1, y1, x2, y2),
        image_size=image_size,
    )
