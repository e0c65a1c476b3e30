import io
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.scenes import specification as spec
from pipeline.scenes.draw import draw_background, draw_jpeg
from pipeline.scenes.layout import PlacedObject


@pytest.mark.parametrize("tone", spec.BACKGROUND_COLORS)
def test_backgrounds_keep_away_from_every_object_color(tone: tuple[int, int, int]) -> None:
    distances = {name: np.linalg.norm(lab(tone) - lab(color)) for name, color in spec.COLORS.items()}
    assert min(distances.values()) >= 28, distances


def test_object_colors_keep_away_from_each_other() -> None:
    colors = list(spec.COLORS.values())
    distances = [np.linalg.norm(lab(a) - lab(b)) for i, a in enumerate(colors) for b in colors[:i]]
    assert min(distances) >= 28


def test_pixels_inside_a_plain_object_have_its_color(layouts: list[list[PlacedObject]]) -> None:
    """The nearest of the eight colours to the middle of a plain square in front is its own."""
    checked = 0
    for seed, placed in enumerate(layouts):
        item = placed[-1].facts  # in front, so not hidden
        if item.name != "square" or item.pattern is not None:
            continue
        jpeg = draw_jpeg(placed, Random(seed), np.random.default_rng(seed), 96)
        x, y = (round(96 * value) for value in item.center)
        middle = np.asarray(Image.open(io.BytesIO(jpeg)))[y - 4 : y + 4, x - 4 : x + 4].mean(axis=(0, 1))
        nearest = min(
            spec.COLORS, key=lambda name: float(np.linalg.norm(lab(middle) - lab(spec.COLORS[name])))
        )
        assert nearest == item.color
        checked += 1
    assert checked >= 5


def test_there_are_several_kinds_of_background() -> None:
    """Told apart by their pixels: one tone, two tones (tiles, bands), few (lines), or many."""
    noise = np.random.default_rng(0)
    tones = [
        len(np.unique(np.asarray(draw_background(Random(seed), noise, 96)).reshape(-1, 3), axis=0))
        for seed in range(60)
    ]
    kinds = {"one": tones.count(1), "two": tones.count(2), "few": sum(2 < n <= 10 for n in tones)}
    assert min(kinds.values()) >= 3, kinds
    assert sum(n > 10 for n in tones) >= 10
    assert len(spec.BACKGROUNDS) >= 4


def test_jpeg_quality_varies_within_the_specification(layouts: list[list[PlacedObject]]) -> None:
    """The first luminance step of a JPEG is 16 at quality 50, hence 6 at 80 and 2 at 95."""
    steps = set()
    for seed in range(40):
        jpeg = draw_jpeg(layouts[0], Random(seed), np.random.default_rng(seed), 96)
        picture = Image.open(io.BytesIO(jpeg))
        assert picture.size == (96, 96)
        steps.add(picture.quantization[0][0])  # type: ignore[attr-defined]  # only JPEG files have it
    assert min(steps) == 2
    assert max(steps) == 6


def lab(color: object) -> NDArray[np.float64]:
    """sRGB 0..255 to CIELAB (D65), by the textbook formulas."""
    rgb = np.asarray(color, dtype=np.float64) / 255
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = matrix @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
