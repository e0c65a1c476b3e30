"""Word vectors from GloVe's text form."""

from pathlib import Path

import numpy as np
import pytest

from stage2_models.word_vectors import read_word_vectors
from store_schema.errors import InputNotFoundError, UsageError


def test_words_get_their_vectors_and_unknown_ones_zeros(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("the 0.5 -1 2\n. . 1 1 1\ndog 1e-1 0 3\n", encoding="utf-8")
    vectors, found = read_word_vectors(path, ["dog", "zebra", "the", ". ."], 3)
    assert found == 3
    np.testing.assert_array_equal(
        vectors, np.array([[0.1, 0, 3], [0, 0, 0], [0.5, -1, 2], [1, 1, 1]], np.float32)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"the 1 2\n", "line 1: a word and 3 numbers expected, got 2"),
        (b"dog 1 2 3\nthe 1 2 x\n", "line 2: 3 numbers expected"),
        (b"cat 1 2 3\n", "none of the 2 words"),
        (b"\x80\xff\x00", "no text in UTF-8"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "vectors.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_word_vectors(path, ["dog", "the"], 3)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="there is no such file"):
        read_word_vectors(tmp_path / "none.txt", ["dog"], 3)
