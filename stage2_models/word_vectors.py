"""Pretrained word vectors (GloVe's text files) for the words of a vocabulary."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from store_schema.errors import InputNotFoundError, UsageError


def read_word_vectors(path: Path, words: Sequence[str], dim: int) -> tuple[NDArray[np.float32], int]:
    """Read the vectors of these words; the file may be far larger than memory.

    Args:
        path: text, a line a word: the word, then its numbers, with spaces between (glove.6B.300d.txt).
        words: V words; a word is looked up as it is, so lower-case ones for GloVe 6B.
        dim: numbers of each vector.

    Returns:
        [V, dim] float32, zeros for a word that the file does not have, and the number of words found.

    Errors: `InputNotFoundError` without the file; `UsageError` naming the line that is not as said, or where no
    word was found.
    """
    places = {word: place for place, word in enumerate(words)}
    vectors = np.zeros((len(words), dim), np.float32)
    found = set()
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                # From the right: a few words of the larger files have spaces in them.
                parts = line.rstrip().rsplit(" ", dim)
                if len(parts) != dim + 1:
                    raise UsageError(
                        f"{path}, line {number}: a word and {dim} numbers expected, got {len(parts) - 1} numbers; "
                        "choose the file whose vectors have the model's embed_dim"
                    )
                place = places.get(parts[0])
                if place is None:
                    continue
                try:
                    vectors[place] = [float(value) for value in parts[1:]]
                except ValueError as error:
                    raise UsageError(
                        f"{path}, line {number}: {dim} numbers expected after the word: {error}"
                    ) from error
                found.add(place)
    except FileNotFoundError as error:
        raise InputNotFoundError(f"word vectors expected at {path}, there is no such file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8 ({error}); is it still packed?") from error
    if not found:
        raise UsageError(
            f"{path} has a vector for none of the {len(words)} words; is it of another language?"
        )
    return vectors, len(found)
