"""Read captions and questions back, knowing only their words and the objects' facts.

Written from `docs/scenes.md`, without the generator's own code: margins and word lists are repeated here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations

NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
PATTERN_WORDS = {"striped", "dotted", "checked"}
SIZE_WORDS = {"small", "large"}
RELATIONS = ("to the left of", "to the right of", "above", "below")
OPENINGS = ("there is ", "there are ", "a picture of ", "a picture with ", "we see ")


@dataclass(frozen=True)
class Thing:
    """One object; centre and area as fractions of the picture."""

    noun: str
    attributes: frozenset[str]
    x: float
    y: float
    area: float


@dataclass(frozen=True)
class Phrase:
    """ "two red balls": the number is None with an article."""

    noun: str
    attributes: frozenset[str]
    number: int | None = None
    definite: bool = False


def read_phrase(text: str) -> Phrase:
    """Parse a noun phrase with an article or a number."""
    first, *attributes, noun = text.split()
    if first in NUMBERS or first.isdigit():
        singular = re.sub("es$" if re.search("(ss|sh)es$", noun) else "s$", "", noun)
        assert singular != noun, f"{text!r}: plural expected"
        return Phrase(singular, frozenset(attributes), NUMBERS.get(first) or int(first))
    next_word = (attributes or [noun])[0]
    expected = {"the", "an" if next_word[0] in "aeiou" else "a"}
    assert first in expected, f"{text!r}: article"
    return Phrase(noun, frozenset(attributes), definite=first == "the")


def named(phrase: Phrase, things: Iterable[Thing]) -> list[Thing]:
    """The objects that a phrase may name."""
    return [t for t in things if phrase.noun in (t.noun, "object") and phrase.attributes <= t.attributes]


def stands(a: Thing, relation: str, b: Thing) -> bool:
    """Whether a relation is clearly so, by a margin of 0.14 of the side."""
    difference = {
        "to the left of": b.x - a.x,
        "to the right of": a.x - b.x,
        "above": b.y - a.y,
        "below": a.y - b.y,
    }
    return difference[relation] >= 0.14 - 1e-9


def place_of(thing: Thing) -> set[str]:
    """The places that may be said of an object: one word for each axis in which it is off the middle."""
    column = (
        "left" if thing.x <= 0.36 else "right" if thing.x >= 0.64 else "" if 0.42 <= thing.x <= 0.58 else None
    )
    row = (
        "top" if thing.y <= 0.36 else "bottom" if thing.y >= 0.64 else "" if 0.42 <= thing.y <= 0.58 else None
    )
    return set() if column is None or row is None else {f"{row} {column}".strip() or "center"}


def caption_is_true(caption: str, things: list[Thing]) -> bool:
    """Parse one caption and check every statement in it."""
    if re.match(r"the \w+ is ", caption):
        return all(_statement_is_true(part, things) for part in re.split(r"(?:, | and )(?=the )", caption))
    rest = next(
        (caption.removeprefix(opening) for opening in OPENINGS if caption.startswith(opening)), caption
    )
    if caption.startswith(("there is ", "there are ")):
        assert (rest.split()[0] in NUMBERS) == caption.startswith("there are "), caption
    if found := re.fullmatch(r"(.+) (?:at|in) the (top|bottom|left|right|center)( left| right)?", rest):
        place = f"{found[2]}{found[3] or ''}"
        return any(place in place_of(thing) for thing in named(read_phrase(found[1]), things))
    if found := re.fullmatch(f"(.+?) ({'|'.join(RELATIONS)}) (.+)", rest):
        a, b = (named(read_phrase(found[part]), things) for part in (1, 3))
        return bool(a and b) and all(stands(one, found[2], other) for one in a for other in b)
    if found := re.fullmatch(r"(\w+ objects) including (.+)", rest):
        return read_phrase(found[1]).number == len(things) and _list_is_true(found[2], things)
    return _list_is_true(rest, things)


def names_an_attribute_or_number(caption: str, things: list[Thing]) -> bool:
    """Whether the caption says at least one attribute or number."""
    words = set(caption.split())
    return bool(words & (set(NUMBERS) | {value for thing in things for value in thing.attributes}))


def _statement_is_true(text: str, things: list[Thing]) -> bool:
    found = re.fullmatch(r"the (\w+) is (\w+)(?: and (\w+))?", text)
    assert found is not None, text
    subjects = named(Phrase(found[1], frozenset()), things)
    return len(subjects) == 1 and {value for value in found.groups()[1:] if value} <= subjects[0].attributes


def _list_is_true(text: str, things: list[Thing]) -> bool:
    """Numbers are exact, and the phrases with an article can name different objects."""
    phrases = [read_phrase(part) for part in re.split(", | and ", text)]
    if any(phrase.number is not None and phrase.number != len(named(phrase, things)) for phrase in phrases):
        return False
    ones = [named(phrase, things) for phrase in phrases if phrase.number is None]
    return any(
        all(thing in choices for thing, choices in zip(chosen, ones, strict=True))
        for chosen in permutations(things, len(ones))
    )


def answer_of(question: str, things: list[Thing]) -> str:
    """Answer a question by rules; fails where a reference does not name exactly one object."""
    text = question.removesuffix("?")
    if found := re.fullmatch("what color is (.+)", text):
        (color,) = _only(found[1], things).attributes - PATTERN_WORDS - SIZE_WORDS
        return color
    if found := re.fullmatch(r"what is (to the left of|to the right of) (.+)", text):
        subject = _only(found[2], things)
        (beside,) = [thing for thing in things if thing is not subject and stands(thing, found[1], subject)]
        return beside.noun
    if found := re.fullmatch("is there (.+)", text):
        return "yes" if named(read_phrase(found[1]), things) else "no"
    if found := re.fullmatch("how many (.+) are there", text):
        return str(len(named(read_phrase(f"2 {found[1]}"), things)))
    if found := re.fullmatch("where is (.+)", text):
        (place,) = place_of(_only(found[1], things))
        return place
    if found := re.fullmatch(f"is (.+?) ({'|'.join(RELATIONS)}) (.+)", text):
        a, b = _only(found[1], things), _only(found[3], things)
        assert stands(a, found[2], b) != stands(b, found[2], a), f"{question}: neither is clearly so"
        return "yes" if stands(a, found[2], b) else "no"
    if found := re.fullmatch("which is larger, (.+) or (.+)", text):
        small, large = sorted((_only(part, things) for part in found.groups()), key=lambda thing: thing.area)
        assert large.area >= 1.6 * small.area - 1e-9, f"{question}: too much alike"
        return large.noun
    found = re.fullmatch("are there more (.+) than (.+)", text)
    assert found is not None, f"{question}: unknown form"
    more, less = (len(named(read_phrase(f"2 {part}"), things)) for part in found.groups())
    assert more != less, f"{question}: as many"
    return "yes" if more > less else "no"


def _only(text: str, things: list[Thing]) -> Thing:
    (thing,) = named(read_phrase(text), things)
    return thing
