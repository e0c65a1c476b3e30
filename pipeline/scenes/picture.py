"""One picture of a data set, whole: file, rows of every table. What the worker processes run.

Every random choice of picture `index` comes from `SeedSequence([seed, index])`, in separate streams for the
picture, the captions and the questions: so neither the number of pictures nor of workers changes it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from pipeline.scenes.captions import make_captions
from pipeline.scenes.draw import draw_jpeg
from pipeline.scenes.layout import PlacedObject, draw_layout
from pipeline.scenes.questions import make_questions

IMAGES_FOLDER = "images"
Row = dict[str, Any]


@dataclass
class SceneRows:
    """Rows of the six tables, in the order of the pictures."""

    images: list[Row] = field(default_factory=list)
    objects: list[Row] = field(default_factory=list)
    object_attributes: list[Row] = field(default_factory=list)
    captions: list[Row] = field(default_factory=list)
    questions: list[Row] = field(default_factory=list)
    answers: list[Row] = field(default_factory=list)

    def extend(self, other: "SceneRows") -> None:
        """Append another chunk's rows."""
        for name, rows in vars(other).items():
            getattr(self, name).extend(rows)


@dataclass(frozen=True, kw_only=True)
class PictureOrder:
    """What a worker needs to make pictures; `splits` are the names in the order of `starts`, their first index."""

    folder: Path
    seed: int
    size: int
    splits: tuple[str, ...]
    starts: tuple[int, ...]

    def split_of(self, index: int) -> str:
        """The split that picture `index` belongs to: the last that starts at or before it."""
        return self.splits[bisect_right(self.starts, index) - 1]


def draw_scene(seed: int, index: int, size: int) -> tuple[list[PlacedObject], bytes]:
    """Layout and JPEG bytes of one picture."""
    choices, noise = np.random.SeedSequence([seed, index, 0]).spawn(2)
    rng = _random(choices)
    placed = draw_layout(rng, size)
    return placed, draw_jpeg(placed, rng, np.random.default_rng(noise), size)


def make_pictures(order: PictureOrder, indices: Sequence[int]) -> SceneRows:
    """Draw pictures into the order's folder and return their rows."""
    rows = SceneRows()
    for index in indices:
        placed, jpeg = draw_scene(order.seed, index, order.size)
        path = f"{IMAGES_FOLDER}/{index:06d}.jpg"
        (order.folder / path).write_bytes(jpeg)
        _add_rows(rows, order, index, path, placed)
    return rows


def _add_rows(
    rows: SceneRows, order: PictureOrder, index: int, path: str, placed: list[PlacedObject]
) -> None:
    image_id, split = f"s{order.seed}-{index:06d}", order.split_of(index)
    key = {"image_id": image_id}
    rows.images.append(key | {"path": path, "width": order.size, "height": order.size, "split": split})
    objects = [item.facts for item in placed]
    for number, thing in enumerate(objects):
        object_id = f"{image_id}-o{number}"
        box = dict(zip(("x1", "y1", "x2", "y2"), thing.box, strict=True))
        rows.objects.append(key | {"object_id": object_id} | box | {"object": thing.name, "crowd": False})
        rows.object_attributes.extend(
            {"object_id": object_id, "attribute": value} for value in thing.attributes
        )
    for number, text in enumerate(make_captions(objects, _stream(order.seed, index, 1))):
        rows.captions.append(key | {"caption_id": f"{image_id}-c{number}", "text": text, "split": split})
    for number, question in enumerate(make_questions(objects, _stream(order.seed, index, 2))):
        question_id = f"{image_id}-q{number}"
        rows.questions.append(
            {
                "question_id": question_id,
                "image_id": image_id,
                "text": question.text,
                "question_type": question.question_type,
                "answer_type": question.answer_type,
                "split": split,
            }
        )
        rows.answers.append({"question_id": question_id, "answer": question.answer, "annotator": 0})


def _stream(seed: int, index: int, purpose: int) -> Random:
    return _random(np.random.SeedSequence([seed, index, purpose]))


def _random(sequence: np.random.SeedSequence) -> Random:
    return Random(int.from_bytes(sequence.generate_state(4).tobytes(), "little"))
