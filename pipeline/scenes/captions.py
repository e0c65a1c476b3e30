"""Five true captions a scene, from a varied grammar, in lower case.

What is mentioned follows one habit, as people's captions do: large objects first, with their colour nearly
always and their pattern mostly. How it is said varies: lists, relations, counts, places, plain statements.
`docs/scenes.md` has the grammar; a test parses captions back and checks them against the objects.
"""

from collections.abc import Callable, Sequence
from itertools import product
from random import Random

from pipeline.scenes.facts import (
    ANY_NOUN,
    NUMBER_WORDS,
    Description,
    count,
    fits,
    is_above,
    is_left,
    place,
    plural_noun,
)
from pipeline.scenes.layout import SceneObject

CAPTIONS_PER_IMAGE = 5
Objects = Sequence[SceneObject]
_SINGULAR_OPENINGS = ("", "", "there is ", "a picture of ", "a picture with ", "we see ")
_PLURAL_OPENINGS = ("", "", "there are ", "a picture of ", "a picture with ", "we see ")


def make_captions(objects: Objects, rng: Random) -> list[str]:
    """Five different captions of a scene; the first kinds are fixed, so that each scene has lists, a relation
    and a count where it allows them."""
    by_size = sorted(objects, key=lambda thing: -thing.area)
    kinds: list[_Kind] = [_pair, _relation, _counting, _triple]
    captions: list[str] = []
    while len(captions) < CAPTIONS_PER_IMAGE:
        kind = kinds.pop(0) if kinds else rng.choices(_KINDS, _WEIGHTS)[0]
        caption = kind(by_size, rng) or _pair(by_size, rng)
        if caption not in captions:
            captions.append(caption)
        elif not kinds:
            kinds.append(rng.choice((_pair, _triple, _counting)))
    rng.shuffle(captions)
    return captions


def _pair(objects: Objects, rng: Random) -> str:
    return _opened(_listed(objects[:2], objects, rng), rng)


def _triple(objects: Objects, rng: Random) -> str | None:
    return _opened(_listed(objects[:3], objects, rng), rng) if len(objects) > 2 else None


def _relation(objects: Objects, rng: Random) -> str | None:
    """Two of the three largest, where each pair that the two descriptions could name stands so."""
    pairs = [(0, 1), (1, 0), (0, 2), (2, 0)] if rng.random() < 0.3 else [(0, 1), (1, 0)]
    rng.shuffle(pairs)
    for first, second in pairs:
        if max(first, second) >= len(objects):
            continue
        a, b = objects[first], objects[second]
        said_a, said_b = _describe(a, rng), _describe(b, rng)
        words = _relation_words(a, b)
        if words is not None and _holds_for_all(objects, said_a, words, said_b):
            return _opened((f"{said_a.with_article} {words} {said_b.with_article}", False), rng)
    return None


def _counting(objects: Objects, rng: Random) -> str | None:
    """How many of a noun that occurs several times, with the largest other object; else how many in all."""
    repeated = [thing.name for thing in objects if sum(thing.name == other.name for other in objects) > 1]
    if repeated:
        noun = repeated[0]
        same = [thing for thing in objects if thing.name == noun]
        others = [thing for thing in objects if thing.name != noun]
        said = Description(noun, (same[0].color,) if len({thing.color for thing in same}) == 1 else ())
        counted = _counted(said, len(same))
        if others and rng.random() < 0.9:
            counted += f" and {_describe(others[0], rng).with_article}"
        return _opened((counted, True), rng)
    rest = _listed(objects[:2], objects, rng)[0]
    number = f"{NUMBER_WORDS[len(objects)]} {plural_noun(ANY_NOUN)}"
    return f"{rng.choice(('', 'there are ', 'a picture of '))}{number} including {rest}"


def _statement(objects: Objects, rng: Random) -> str | None:
    """The colour or pattern of the two largest, where their nouns name nothing else."""
    said = []
    for thing in objects[:2]:
        if count(objects, Description(thing.name)) == 1:
            values = [value for value in (thing.color, thing.pattern) if value is not None]
            said.append(f"the {thing.name} is {' and '.join(values)}")
    return (" and " if rng.random() < 0.6 else ", ").join(said) if len(said) == 2 else None


def _placed(objects: Objects, rng: Random) -> str | None:
    where = place(objects[0])
    if where is None:
        return None
    said = _describe(objects[0], rng)
    return _opened((f"{said.with_article} {'in' if where == 'center' else 'at'} the {where}", False), rng)


_Kind = Callable[[Objects, Random], str | None]
_KINDS: tuple[_Kind, ...] = (_pair, _relation, _statement, _placed)
_WEIGHTS = (4, 3, 2, 1)


def _opened(listed: tuple[str, bool], rng: Random) -> str:
    text, is_plural = listed
    return rng.choice(_PLURAL_OPENINGS if is_plural else _SINGULAR_OPENINGS) + text


def _describe(thing: SceneObject, rng: Random) -> Description:
    """The object's noun with its colour and pattern, now and then with less or with its size."""
    choice = rng.random()
    pattern = () if thing.pattern is None or choice < 0.15 else (thing.pattern,)
    color = () if pattern and choice < 0.22 else (thing.color,)
    size = () if thing.size is None or rng.random() > 0.12 else (thing.size,)
    return Description(thing.name, (*size, *color, *pattern))


def _listed(mentioned: Objects, objects: Objects, rng: Random) -> tuple[str, bool]:
    """Mentioned objects joined with commas and "and", and whether the first item is a plural.

    Objects of one noun are named one by one only where their colours differ, so that no two items can mean
    the same object; else as a number, which counts every such object of the scene.
    """
    items: list[tuple[str, bool]] = []
    for noun in dict.fromkeys(thing.name for thing in mentioned):
        same = [thing for thing in mentioned if thing.name == noun]
        colors = {thing.color for thing in same}
        if len(same) == 1:
            items.append((_describe(same[0], rng).with_article, False))
        elif len(colors) == len(same):
            items.extend((Description(noun, (thing.color,)).with_article, False) for thing in same)
        else:
            said = Description(noun, tuple(colors) if len(colors) == 1 else ())
            total = count(objects, said)
            assert total is not None, "a colour is decided for every object"
            items.append((_counted(said, total), True))
    words = [text for text, _ in items]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words), items[0][1]


def _counted(said: Description, total: int) -> str:
    return f"{NUMBER_WORDS[total]} {said.plural}"


def _relation_words(a: SceneObject, b: SceneObject) -> str | None:
    """How a stands to b along the axis on which they are farther apart."""
    (ax, ay), (bx, by) = a.center, b.center
    if abs(ax - bx) >= abs(ay - by):
        left = is_left(a, b)
        return None if left is None else "to the left of" if left else "to the right of"
    above = is_above(a, b)
    return None if above is None else "above" if above else "below"


def _holds_for_all(objects: Objects, said_a: Description, words: str, said_b: Description) -> bool:
    """Whether the relation is true whichever objects the two descriptions are taken to name."""
    could_be_a = [thing for thing in objects if fits(thing, said_a) is not False]
    could_be_b = [thing for thing in objects if fits(thing, said_b) is not False]
    return all(a is not b and _relation_words(a, b) == words for a, b in product(could_be_a, could_be_b))
