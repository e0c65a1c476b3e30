import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store_schema import image_index
from store_schema.image_index import ImageIds

IDENTIFIERS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


def make_ids(values: list[str]) -> ImageIds:
    width = -(-max((len(value.encode()) for value in values), default=1) // 8) * 8
    matrix = np.zeros((len(values), width), np.uint8)
    for row, value in enumerate(values):
        encoded = value.encode()
        matrix[row, : len(encoded)] = list(encoded)
    return ImageIds(matrix)


@given(st.lists(IDENTIFIERS, unique=True, max_size=30), st.lists(IDENTIFIERS, max_size=10))
def test_places_are_those_of_a_list(values: list[str], others: list[str]) -> None:
    ids = make_ids(values)
    asked = values[::-1] + others
    expected = [values.index(value) if value in values else -1 for value in asked]
    assert ids.places(asked).tolist() == expected
    assert list(ids) == values


def test_it_is_a_sequence() -> None:
    ids = make_ids(["a", "bb", "ccc"])
    assert (len(ids), ids[1], ids[-1], ids[1:], "bb" in ids, "b" in ids) == (
        3,
        "bb",
        "ccc",
        ["bb", "ccc"],
        True,
        False,
    )
    with pytest.raises(IndexError, match="out of bounds"):
        ids[3]


def test_equal_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collisions are too rare to wait for: here every identifier has the same hash."""
    monkeypatch.setattr(image_index, "_hashes", lambda utf8: np.zeros(len(utf8), np.uint64))
    ids = make_ids(["a", "b", "c", "d"])
    assert ids.places(["d", "x", "a", "c"]).tolist() == [3, -1, 0, 2]


def test_an_identifier_longer_than_all_is_not_there() -> None:
    ids = make_ids(["abcdefgh"])
    assert ids.places(["abcdefghi", "", "abcdefgh"]).tolist() == [-1, -1, 0]
