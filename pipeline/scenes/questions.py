"""Questions of seven types with one certain answer each, balanced so that the question alone says little.

A yes/no question is asked only where the scene allows both a yes and a no of the same form, and a coin
decides; a negative one uses nouns and attributes that are in the picture. Numbers and places are drawn with
weights that flatten their distribution. References name exactly one object.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from pipeline.scenes import specification as spec
from pipeline.scenes.facts import (
    ANY_NOUN,
    Description,
    count,
    is_above,
    is_larger,
    is_left,
    place,
    plural_noun,
)
from pipeline.scenes.layout import SceneObject

AnswerType = Literal["yes/no", "number", "other"]
Objects = Sequence[SceneObject]
EXTRA_QUESTIONS = 2
_TRIES = 8
_EXTRA_WEIGHTS = (1, 4, 1, 1, 1, 1, 2)
"""By type, in the order of `MAKERS`: more for those that fewer scenes allow."""
_NUMBER_WEIGHTS = (2, 2, 5, 10, 10, 10, 10)
"""By number: three and more are rarer in the scenes, so they are asked for whenever they are there."""
_PLACE_WEIGHTS = {"top": 1.5, "bottom": 1.5, "left": 1.5, "right": 1.5, "center": 2.5}
"""The middle bands are narrower than the corners, which have weight 1."""


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    question_type: str
    answer_type: AnswerType


def make_questions(objects: Objects, rng: Random) -> list[Question]:
    """One question of each type where the scene has one, and a few more; no text twice."""
    extra = rng.choices(tuple(MAKERS), _EXTRA_WEIGHTS, k=EXTRA_QUESTIONS)
    questions: dict[str, Question] = {}
    for question_type in (*MAKERS, *extra):
        for _ in range(_TRIES):
            question = MAKERS[question_type](objects, rng)
            if question is not None and question.text not in questions:
                questions[question.text] = question
                break
    return list(questions.values())


def refer(
    thing: SceneObject, objects: Objects, rng: Random, *, avoid: frozenset[str] = frozenset()
) -> Description | None:
    """A description that names this object and surely no other; attributes in `avoid` are not used.

    The noun alone where that is enough (now and then with an attribute all the same), else with one attribute.
    """
    plain = Description(thing.name)
    usable = [value for value in thing.attributes if value not in avoid]
    longer = [Description(thing.name, (value,)) for value in rng.sample(usable, len(usable))]
    candidates = [*longer, plain] if rng.random() < 0.25 else [plain, *longer]
    return next((said for said in candidates if count(objects, said) == 1), None)


def _color(objects: Objects, rng: Random) -> Question | None:
    thing = rng.choice(objects)
    said = refer(thing, objects, rng, avoid=frozenset(spec.COLORS))
    if said is None:
        return None
    return Question(f"what color is the {said.singular}?", thing.color, "color", "other")


def _side(objects: Objects, rng: Random) -> Question | None:
    """Asked where exactly one object stands on that side, none nearly, and it has another noun than the question."""
    choices = [
        (thing, side, beside)
        for thing in objects
        for side in ("left", "right")
        if (beside := _only_one_beside(thing, side, objects)) is not None and beside.name != thing.name
    ]
    if not choices:
        return None
    thing, side, beside = rng.choice(choices)
    said = refer(thing, objects, rng)
    if said is None:
        return None
    return Question(f"what is to the {side} of the {said.singular}?", beside.name, "side", "other")


def _only_one_beside(thing: SceneObject, side: str, objects: Objects) -> SceneObject | None:
    sign = 1 if side == "left" else -1
    distances = [
        (sign * (thing.center[0] - other.center[0]), other) for other in objects if other is not thing
    ]
    beside = [(distance, other) for distance, other in distances if distance > spec.SIDE_CLEAR_MARGIN]
    return beside[0][1] if len(beside) == 1 and beside[0][0] >= spec.RELATION_MARGIN else None


def _exists(objects: Objects, rng: Random) -> Question | None:
    """A noun alone, or with an attribute that another noun of the picture has and this one surely has not."""
    is_there = rng.random() < 0.5
    if rng.random() < 0.2:
        names = sorted({thing.name for thing in objects})
        noun = rng.choice(names if is_there else [name for name in spec.OBJECT_NAMES if name not in names])
        said = Description(noun)
    else:
        attribute = rng.choice(rng.choice(objects).attributes)
        nouns = sorted({thing.name for thing in objects})
        answers = {noun: count(objects, Description(noun, (attribute,))) for noun in nouns}
        having = [noun for noun, number in answers.items() if number]
        lacking = [noun for noun, number in answers.items() if number == 0]
        if not having or not lacking:
            return None
        said = Description(rng.choice(having if is_there else lacking), (attribute,))
    return Question(f"is there {said.with_article}?", _yes_no(is_there), "exists", "yes/no")


def _count(objects: Objects, rng: Random) -> Question | None:
    """How many of a noun, of a colour or pattern, of both, or of all; the number is chosen first."""
    family = rng.choices(("noun", "attribute", "both", "all"), (5, 4, 3, 2))[0]
    if family == "all":
        return Question("how many objects are there?", str(len(objects)), "count", "number")
    values = (*spec.COLORS, *spec.PATTERNS)
    if family == "noun":
        asked = [Description(noun) for noun in spec.OBJECT_NAMES]
    elif family == "attribute":
        asked = [Description(ANY_NOUN, (value,)) for value in values]
    else:
        nouns = sorted({thing.name for thing in objects})
        here = {value for thing in objects for value in thing.attributes}
        asked = [Description(noun, (value,)) for noun in nouns for value in values if value in here]
    by_number: dict[int, list[Description]] = {}
    for said in asked:
        number = count(objects, said)
        if number is not None:
            by_number.setdefault(number, []).append(said)
    numbers = sorted(by_number)
    number = rng.choices(numbers, [_NUMBER_WEIGHTS[number] for number in numbers])[0]
    said = rng.choice(by_number[number])
    return Question(f"how many {said.plural} are there?", str(number), "count", "number")


def _where(objects: Objects, rng: Random) -> Question | None:
    places = [(thing, where) for thing in objects if (where := place(thing)) is not None]
    if not places:
        return None
    thing, where = rng.choices(places, [_PLACE_WEIGHTS.get(where, 1) for _, where in places])[0]
    said = refer(thing, objects, rng)
    return None if said is None else Question(f"where is the {said.singular}?", where, "where", "other")


def _relation(objects: Objects, rng: Random) -> Question | None:
    a, b = rng.sample(objects, 2)
    said_a, said_b = refer(a, objects, rng), refer(b, objects, rng)
    is_so, words = rng.choice(
        ((is_left(a, b), "to the left of"), (is_left(b, a), "to the right of"),
         (is_above(a, b), "above"), (is_above(b, a), "below"))
    )  # fmt: skip
    if is_so is None or said_a is None or said_b is None:
        return None
    text = f"is the {said_a.singular} {words} the {said_b.singular}?"
    return Question(text, _yes_no(is_so), "relation", "yes/no")


def _comparison(objects: Objects, rng: Random) -> Question | None:
    return _larger(objects, rng) if rng.random() < 0.5 else _more(objects, rng)


def _larger(objects: Objects, rng: Random) -> Question | None:
    """The answer is one of two different nouns; sizes are no help to refer by."""
    a, b = rng.sample(objects, 2)
    sizes = frozenset(spec.SIZES)
    said_a, said_b = (refer(thing, objects, rng, avoid=sizes) for thing in (a, b))
    larger = is_larger(a, b)
    if larger is None or said_a is None or said_b is None or a.name == b.name:
        return None
    text = f"which is larger, the {said_a.singular} or the {said_b.singular}?"
    return Question(text, a.name if larger else b.name, "comparison", "other")


def _more(objects: Objects, rng: Random) -> Question | None:
    names = sorted({thing.name for thing in objects})
    if len(names) < 2:
        return None
    a, b = rng.sample(names, 2)
    number_a, number_b = (sum(thing.name == name for thing in objects) for name in (a, b))
    if number_a == number_b:
        return None
    text = f"are there more {plural_noun(a)} than {plural_noun(b)}?"
    return Question(text, _yes_no(number_a > number_b), "comparison", "yes/no")


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


MAKERS: dict[str, Callable[[Objects, Random], Question | None]] = {
    "color": _color,
    "side": _side,
    "exists": _exists,
    "count": _count,
    "where": _where,
    "relation": _relation,
    "comparison": _comparison,
}
"""The seven question types, by the names in the questions table."""
