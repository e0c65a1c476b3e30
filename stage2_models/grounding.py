"""Whether captions say what is true, and whether the attention looks where the words point.

Needs only the tables `objects` and `object_attributes`: names found in the captions, singular or plural, are
compared with what the pictures hold. A name may have several words ("traffic light"). Names that no table
knows are not judged; relations and numbers are `statements`' part.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stage2_models.decoding import GeneratedCaption
from stage2_models.tokeniser import tokenise

IOU_THRESHOLD = 0.5


@dataclass(frozen=True)
class Mention:
    """An object named in a caption: the index of its name's last word, the name, the attributes right before it, and
    the index of the first word of all that."""

    index: int
    name: str
    attributes: tuple[str, ...]
    start: int


class Lexicon:
    """Finds object and attribute names in captions."""

    def __init__(self, object_names: Iterable[str], attribute_names: Iterable[str]) -> None:
        self.objects = {form: name for name in object_names for form in _forms(name)}
        self.attributes = {tuple(tokenise(name)): name for name in attribute_names}
        self.longest = max((len(form) for form in (*self.objects, *self.attributes)), default=0)

    @classmethod
    def from_tables(cls, objects: pd.DataFrame, object_attributes: pd.DataFrame) -> Self:
        """Take the names that occur in the tables."""
        return cls(objects["object"].unique(), object_attributes["attribute"].unique())

    def mentions(self, words: Sequence[str]) -> list[Mention]:
        """Find the objects named, in the caption's order; the longest name wins ("fire truck" before "truck").

        Attributes count for an object where they stand directly before it, one after the other. A word that is
        both ("orange") is an attribute where an object or another attribute follows, else an object.
        """
        found: list[Mention] = []
        attributes: list[str] = []
        index = start = 0
        while index < len(words):
            name, width = self._longest(self.objects, words, index)
            attribute, attribute_width = self._longest(self.attributes, words, index)
            if attribute and (width < attribute_width or self._starts_name(words, index + attribute_width)):
                attributes.append(attribute)
                index += attribute_width
                continue
            if name:
                found.append(Mention(index + width - 1, name, tuple(attributes), start))
            attributes = []
            index += width or 1
            start = index
        return found

    def _starts_name(self, words: Sequence[str], index: int) -> bool:
        return bool(
            self._longest(self.objects, words, index)[0] or self._longest(self.attributes, words, index)[0]
        )

    def _longest(
        self, names: Mapping[tuple[str, ...], str], words: Sequence[str], index: int
    ) -> tuple[str, int]:
        for width in range(min(self.longest, len(words) - index), 0, -1):
            name = names.get(tuple(words[index : index + width]))
            if name is not None:
                return name, width
        return "", 0


@dataclass(frozen=True)
class TruthScores:
    """Shares of what captions state that is true; NaN where nothing was stated.

    pairs: (attribute, object) pairs true of some object of the picture. objects: objects that are there.
    """

    pairs: float
    num_pairs: int
    objects: float
    num_objects: int


def true_pairs(
    captions: Mapping[str, Sequence[str]], objects: pd.DataFrame, object_attributes: pd.DataFrame
) -> TruthScores:
    """Judge stated objects and (attribute, object) pairs by the tables.

    Args:
        captions: the words of each picture's caption, by image_id.
        objects: the table, of at least these pictures; names anywhere in it are known names.
        object_attributes: the table.
    """
    lexicon = Lexicon.from_tables(objects, object_attributes)
    here = objects[objects["image_id"].isin(captions.keys())]
    present = set(zip(here["image_id"], here["object"], strict=True))
    stated = here.merge(object_attributes, on="object_id")
    true = set(zip(stated["image_id"], stated["attribute"], stated["object"], strict=True))
    objects_true: list[bool] = []
    pairs_true: list[bool] = []
    for image_id, words in captions.items():
        for mention in lexicon.mentions(words):
            objects_true.append((image_id, mention.name) in present)
            pairs_true.extend((image_id, attribute, mention.name) in true for attribute in mention.attributes)
    return TruthScores(_share(pairs_true), len(pairs_true), _share(objects_true), len(objects_true))


@dataclass(frozen=True)
class PointingScores:
    """How often attention points at what a word names; NaN where no such word was written.

    accuracy: share of noun words whose step looks most at a region with IoU >= .5 to an object of that name.
    chance: expected share for a real region drawn at random. num_words: noun words judged.
    """

    accuracy: float
    chance: float
    num_words: int


def pointing(
    captions: Mapping[str, GeneratedCaption], boxes: Mapping[str, NDArray[np.float32]], objects: pd.DataFrame
) -> PointingScores:
    """Compare the attention of each noun word with the boxes of the named class in the picture.

    Judged are words that name a class of which the picture has an object; of a name of several words, the step
    that emits the last one. The step looked at is the one that emits the word.

    Args:
        captions: with attention over region slots, by image_id.
        boxes: [n, 4] xyxy of each picture's real regions, in the order of the slots, in the pixels of the table.
        objects: the table, of at least these pictures.
    """
    lexicon = Lexicon(objects["object"].unique(), ())
    truths = {
        (str(image_id), str(name)): group[["x1", "y1", "x2", "y2"]].to_numpy(np.float64)
        for (image_id, name), group in objects[objects["image_id"].isin(captions.keys())].groupby(
            ["image_id", "object"]
        )
    }
    hits: list[bool] = []
    chances: list[float] = []
    for image_id, caption in captions.items():
        for mention in lexicon.mentions(caption.words):
            truth = truths.get((image_id, mention.name))
            regions = boxes[image_id]
            if truth is None or len(regions) == 0:
                continue
            on_object = np.max(pairwise_iou(regions, truth), 1) >= IOU_THRESHOLD  # [n]
            looked_at = int(caption.attention[mention.index, : len(regions)].argmax())
            hits.append(bool(on_object[looked_at]))
            chances.append(float(np.mean(on_object)))
    return PointingScores(_share(hits), _share(chances), len(hits))


def pairwise_iou(boxes: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """Intersection over union of each of [n, 4] with each of [m, 4] boxes, xyxy: [n, m]."""
    boxes, others = np.asarray(boxes, np.float64), np.asarray(others, np.float64)
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    area, other_area = (values[:, 2:] - values[:, :2] for values in (boxes, others))
    union = area.prod(-1)[:, None] + other_area.prod(-1)[None, :] - shared
    return np.asarray(shared / np.maximum(union, 1e-12))


def _forms(name: str) -> list[tuple[str, ...]]:
    """A name's words in the singular and the plural: s, es, and ies for a final y."""
    *head, last = tokenise(name) or [name]
    forms = [last, f"{last}s", f"{last}es"]
    if last.endswith("y"):
        forms.append(f"{last[:-1]}ies")
    return [(*head, form) for form in forms]


def _share(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
