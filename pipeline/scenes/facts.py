"""What is true of a scene, with margins: the only source of captions and answers.

A statement is made or denied only where the picture decides it. Between the two lies a gap (a size in the
middle, two centres nearly level), and there the functions return None.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.scenes import specification as spec
from pipeline.scenes.layout import SceneObject

ANY_NOUN = "object"
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Description:
    """A noun with attributes in the order of speech (size, colour, pattern); the noun may be `ANY_NOUN`."""

    noun: str
    attributes: tuple[str, ...] = ()

    @property
    def singular(self) -> str:
        return " ".join((*self.attributes, self.noun))

    @property
    def plural(self) -> str:
        return " ".join((*self.attributes, plural_noun(self.noun)))

    @property
    def with_article(self) -> str:
        return f"{'an' if self.singular[0] in 'aeiou' else 'a'} {self.singular}"


def plural_noun(noun: str) -> str:
    """crosses, fishes; else with a plain s."""
    return noun + ("es" if noun.endswith(("s", "sh")) else "s")


def has(thing: SceneObject, attribute: str) -> bool | None:
    """Whether the attribute is true of the object; None where it has a middle size and a size is asked."""
    if attribute in spec.SIZES and thing.size is None:
        return None
    return attribute in thing.attributes


def fits(thing: SceneObject, description: Description) -> bool | None:
    """Whether a description names the object; None where the picture does not decide it."""
    if description.noun not in (ANY_NOUN, thing.name):
        return False
    answers = [has(thing, attribute) for attribute in description.attributes]
    if False in answers:
        return False
    return None if None in answers else True


def count(objects: Sequence[SceneObject], description: Description) -> int | None:
    """How many objects the description names; None where that is not decided for every object."""
    answers = [fits(thing, description) for thing in objects]
    return None if None in answers else sum(answer is True for answer in answers)


def is_left(a: SceneObject, b: SceneObject) -> bool | None:
    """Whether a's centre is clearly left of b's; None in between."""
    return _before(a.center[0], b.center[0])


def is_above(a: SceneObject, b: SceneObject) -> bool | None:
    """Whether a's centre is clearly above b's; None in between."""
    return _before(a.center[1], b.center[1])


def is_larger(a: SceneObject, b: SceneObject) -> bool | None:
    """Whether a's box is clearly larger than b's; None where the areas are alike."""
    if a.area >= spec.LARGER_AREA_RATIO * b.area:
        return True
    return False if b.area >= spec.LARGER_AREA_RATIO * a.area else None


def place(thing: SceneObject) -> str | None:
    """One of nine places: "top left", "top", ... "center", ..., "bottom right"; None near a border of two."""
    x, y = thing.center
    column, row = _third(x), _third(y)
    if column is None or row is None:
        return None
    words = [("top", "", "bottom")[row], ("left", "", "right")[column]]
    return " ".join(word for word in words if word) or "center"


def _before(a: float, b: float) -> bool | None:
    if abs(a - b) < spec.RELATION_MARGIN:
        return None
    return a < b


def _third(position: float) -> int | None:
    if position <= spec.PLACE_OUTER:
        return 0
    if position >= 1 - spec.PLACE_OUTER:
        return 2
    return 1 if spec.PLACE_MIDDLE[0] <= position <= spec.PLACE_MIDDLE[1] else None
