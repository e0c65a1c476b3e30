"""Whether the relations and numbers that captions state are true, judged by the boxes of the tables.

"a red ball to the left of a star", "two red balls", "four objects": what an object detector's annotations can decide.
Each share comes with its chance: what the same statements would score with the relation, or the number, drawn from
those that all captions state.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from stage2_models.grounding import Lexicon, Mention

RELATIONS: dict[str, tuple[int, int]] = {
    "to the left of": (0, 1),
    "to the right of": (0, -1),
    "above": (1, 1),
    "below": (1, -1),
}
"""Axis along which the first object's centre comes before (1) or after (-1) the second's."""
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ANY_OBJECT = "objects"


@dataclass(frozen=True)
class StatementScores:
    """Shares of stated relations and numbers that are true, and by chance; NaN where none was stated.

    A relation is true where two objects that its words could name stand so; a number where just so many objects have
    the name and the attributes before it.
    """

    relations: float
    relations_chance: float
    num_relations: int
    numbers: float
    numbers_chance: float
    num_numbers: int


@dataclass(frozen=True)
class _Thing:
    name: str
    attributes: frozenset[str]
    center: tuple[float, float]

    def fits(self, mention: Mention) -> bool:
        return self.name == mention.name and self.attributes.issuperset(mention.attributes)


def judge_statements(
    captions: Mapping[str, Sequence[Sequence[str]]], objects: pd.DataFrame, object_attributes: pd.DataFrame
) -> StatementScores:
    """Judge the relations and numbers of each picture's captions.

    Args:
        captions: of each picture one or several, as words, by image_id.
        objects: the table, of at least these pictures; names anywhere in it are known names.
        object_attributes: the table.
    """
    lexicon = Lexicon.from_tables(objects, object_attributes)
    things = _things(objects[objects["image_id"].isin(captions.keys())], object_attributes)
    relations: list[tuple[str, Callable[[str], bool]]] = []
    numbers: list[tuple[str, Callable[[str], bool]]] = []
    for image_id, several in captions.items():
        here = things.get(image_id, [])
        for words in several:
            mentions = lexicon.mentions(words)
            relations += _relations(words, mentions, here)
            numbers += _numbers(words, mentions, here)
    return StatementScores(
        *_share_and_chance(relations), len(relations), *_share_and_chance(numbers), len(numbers)
    )


def _relations(
    words: Sequence[str], mentions: Sequence[Mention], things: Sequence[_Thing]
) -> list[tuple[str, Callable[[str], bool]]]:
    """Each stated relation, and whether another one would be true of the same two mentions."""
    found = []
    for first, second in pairwise(mentions):
        between = " ".join(words[first.index + 1 : second.start])
        for stated in RELATIONS:
            if between in (stated, f"{stated} a", f"{stated} an", f"{stated} the"):
                firsts = [thing for thing in things if thing.fits(first)]
                seconds = [thing for thing in things if thing.fits(second)]
                found.append((stated, _standing(firsts, seconds)))
    return found


def _standing(firsts: Sequence[_Thing], seconds: Sequence[_Thing]) -> Callable[[str], bool]:
    def true(relation: str) -> bool:
        axis, sign = RELATIONS[relation]
        return any(
            a is not b and sign * (b.center[axis] - a.center[axis]) > 0 for a in firsts for b in seconds
        )

    return true


def _numbers(
    words: Sequence[str], mentions: Sequence[Mention], things: Sequence[_Thing]
) -> list[tuple[str, Callable[[str], bool]]]:
    """Each stated number, and whether another one would be true of the same mention."""
    counted = [
        (words[mention.start - 1], sum(thing.fits(mention) for thing in things))
        for mention in mentions
        if mention.start > 0
    ]
    counted += [(number, len(things)) for number, word in pairwise(words) if word == ANY_OBJECT]
    return [(number, _counting(count)) for number, count in counted if number in NUMBERS]


def _counting(count: int) -> Callable[[str], bool]:
    return lambda number: NUMBERS.index(number) + 1 == count


def _share_and_chance(stated: Sequence[tuple[str, Callable[[str], bool]]]) -> tuple[float, float]:
    if not stated:
        return float("nan"), float("nan")
    shares = {word: count / len(stated) for word, count in Counter(word for word, _ in stated).items()}
    chances = [sum(share * true(word) for word, share in shares.items()) for _, true in stated]
    return float(np.mean([true(word) for word, true in stated])), float(np.mean(chances))


def _things(objects: pd.DataFrame, object_attributes: pd.DataFrame) -> dict[str, list[_Thing]]:
    attributes: dict[str, set[str]] = {}
    for object_id, attribute in object_attributes[["object_id", "attribute"]].to_numpy():
        attributes.setdefault(object_id, set()).add(attribute)
    # Twice the centres, of which only the order counts.
    centers = objects[["x1", "y1"]].to_numpy(float) + objects[["x2", "y2"]].to_numpy(float)
    things: dict[str, list[_Thing]] = {}
    named = objects[["image_id", "object_id", "object"]].to_numpy()
    for (image_id, object_id, name), (x, y) in zip(named, centers.tolist(), strict=True):
        thing = _Thing(name, frozenset(attributes.get(object_id, ())), (x, y))
        things.setdefault(image_id, []).append(thing)
    return things
