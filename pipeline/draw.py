"""Pictures for people: regions with labels, attention word by word, the regions behind an answer.

Every function takes an RGB picture [H, W, 3] uint8 and boxes in its pixels, and returns a Pillow image that
is enlarged so that text is readable. What is drawn comes from the store and the models.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stage2_models.grounding import pairwise_iou

# Ten colours of even lightness that stay apart for colour-blind readers (Okabe-Ito, extended).
_COLOURS = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#B2DF8A",
    "#FB9A99",
    "#CAB2D6",
)
_TEXT_HEIGHT = 15
_PAPER = (255, 255, 255)
_INK = (25, 25, 25)


def enlarge(image: NDArray[np.uint8], short_side: int) -> tuple[Image.Image, float]:
    """Return the picture with its short side at least `short_side` pixels, and the factor applied."""
    height, width = image.shape[:2]
    factor = max(1.0, short_side / min(height, width))
    size = (round(width * factor), round(height * factor))
    return Image.fromarray(image).resize(size, Image.Resampling.LANCZOS), factor


def draw_regions(
    image: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    labels: Sequence[str],
    *,
    short_side: int = 384,
    max_regions: int = 8,
    max_overlap: float = 0.5,
) -> Image.Image:
    """Draw the first regions with their labels over the picture; near-copies of a drawn one are left out.

    Args:
        image: [H, W, 3] uint8 RGB.
        boxes: [K, 4] xyxy pixels, best first.
        labels: K texts.
        short_side: least length of the drawn picture's short side, in pixels.
        max_regions: most regions drawn.
        max_overlap: a region whose IoU with one that is drawn is larger is not drawn.
    """
    canvas, factor = enlarge(image, short_side)
    draw = ImageDraw.Draw(canvas)
    shown = _distinct(boxes, max_overlap)[:max_regions]
    # The best region is drawn last, so that it lies on top.
    for place, index in reversed(list(enumerate(shown))):
        draw.rectangle(_scaled(boxes[index], factor), outline=_COLOURS[place % len(_COLOURS)], width=2)
    taken: list[tuple[float, float, float, float]] = []
    for place, index in enumerate(shown):
        colour = _COLOURS[place % len(_COLOURS)]
        _label(draw, canvas, _scaled(boxes[index], factor), labels[index], colour, taken)
    return canvas


def draw_word_attention(
    image: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    words: Sequence[str],
    weights: NDArray[np.float32],
    *,
    tile: int = 144,
    columns: int = 7,
) -> Image.Image:
    """Draw one small picture a word: lit where the attention lies, its strongest region outlined.

    Args:
        image: [H, W, 3] uint8 RGB.
        boxes: [K, 4] xyxy pixels.
        words: T words.
        weights: [T, K] attention weights of each word, each row summing to one.
        tile: length of a small picture's long side, in pixels.
        columns: small pictures in a row.
    """
    height, width = image.shape[:2]
    factor = tile / max(height, width)
    size = (round(width * factor), round(height * factor))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS), dtype=np.float32)
    cell_width, cell_height = tile + 8, size[1] + _TEXT_HEIGHT + 12
    rows = -(-(len(words) + 1) // columns)
    sheet = Image.new("RGB", (cell_width * min(columns, len(words) + 1), cell_height * rows), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place in range(len(words) + 1):
        left, top = (place % columns) * cell_width + 4, (place // columns) * cell_height + 4
        if place == 0:
            sheet.paste(Image.fromarray(small.astype(np.uint8)), (left, top))
            continue
        row = weights[place - 1]
        light = _light_map(boxes * factor, row, size)
        lit = small * (0.25 + 0.75 * light[..., None])
        sheet.paste(Image.fromarray(lit.astype(np.uint8)), (left, top))
        if len(boxes):
            x1, y1, x2, y2 = _scaled(boxes[int(row.argmax())], factor)
            draw.rectangle((left + x1, top + y1, left + x2, top + y2), outline=_COLOURS[0], width=2)
        text = f"{words[place - 1]}  {row.max():.2f}" if len(row) else words[place - 1]
        draw.text((left, top + size[1] + 2), text, fill=_INK, font=_font())
    return sheet


def draw_answer(
    image: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    logits: NDArray[np.float32],
    weights: NDArray[np.float32],
    *,
    short_side: int = 320,
    max_regions: int = 4,
) -> Image.Image:
    """Draw the regions an answer rests on: light by softmaxed weight, labels give the unnormalised weight.

    Args:
        image: [H, W, 3] uint8 RGB.
        boxes: [K, 4] xyxy pixels.
        logits: [K] unnormalised attention weights.
        weights: [K] their softmax over the real regions.
        short_side: least length of the drawn picture's short side, in pixels.
        max_regions: regions outlined, strongest first.
    """
    large, factor = enlarge(image, short_side)
    light = _light_map(boxes * factor, weights, large.size)
    lit = np.asarray(large, dtype=np.float32) * (0.35 + 0.65 * light[..., None])
    canvas = Image.fromarray(lit.astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    taken: list[tuple[float, float, float, float]] = []
    for rank, index in enumerate(np.argsort(-weights)[:max_regions]):
        box = _scaled(boxes[index], factor)
        draw.rectangle(box, outline=_COLOURS[rank], width=3 if rank == 0 else 2)
        _label(draw, canvas, box, f"{logits[index]:+.1f}", _COLOURS[rank], taken)
    return canvas


def contact_sheet(pictures: Sequence[Image.Image], *, columns: int) -> Image.Image:
    """Lay pictures out in rows, each row as high as its highest picture."""
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    width = max(sum(picture.width + 6 for picture in row) for row in rows)
    sheet = Image.new("RGB", (width, sum(heights) + 6 * len(rows)), _PAPER)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for picture in row:
            sheet.paste(picture, (left, top))
            left += picture.width + 6
        top += height + 6
    return sheet


def _distinct(boxes: NDArray[np.float32], max_overlap: float) -> list[int]:
    """Indices of the boxes that overlap no earlier chosen one by more."""
    overlaps = pairwise_iou(boxes, boxes)
    chosen: list[int] = []
    for index in range(len(boxes)):
        if not chosen or overlaps[index, chosen].max() <= max_overlap:
            chosen.append(index)
    return chosen


def _light_map(
    boxes: NDArray[np.float32], weights: NDArray[np.float32], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Sum the weights of the boxes that cover each pixel, scaled so that the brightest is one: [H, W]."""
    light = np.zeros((size[1], size[0]), dtype=np.float32)
    for box, weight in zip(boxes, weights, strict=True):
        x1, y1, x2, y2 = (round(float(value)) for value in box)
        light[max(y1, 0) : y2, max(x1, 0) : x2] += weight
    return light / max(float(light.max()), 1e-6)


def _scaled(box: NDArray[np.float32], factor: float) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(value) * factor for value in box)
    return x1, y1, x2, y2


def _label(
    draw: ImageDraw.ImageDraw,
    canvas: Image.Image,
    box: tuple[float, float, float, float],
    text: str,
    colour: str,
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Write a label at the first place by the box where it covers no other label and stays in the picture."""
    width, height = draw.textlength(text, font=_font()) + 6, _TEXT_HEIGHT + 3
    x1, y1, x2, y2 = box
    places = (
        (x1, y1),
        (x1, y2 - height),
        (x2 - width, y1),
        (x2 - width, y2 - height),
        (x1, y1 - height),
        (x1, y2),
    )
    for left, top in places:
        left = min(max(left, 0), canvas.width - width)
        top = min(max(top, 0), canvas.height - height)
        place = (left, top, left + width, top + height)
        if not any(_overlap(place, other) for other in taken):
            break
    else:
        return
    taken.append(place)
    draw.rectangle(place, fill=colour)
    draw.text((place[0] + 3, place[1] + 1), text, fill=_INK, font=_font())


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=_TEXT_HEIGHT - 2)
