"""The vocabulary: order, special words, encoding."""

import numpy as np
import pytest

from stage2_models.vocabulary import SPECIAL_WORDS, Vocabulary
from store_schema.errors import CheckpointError, UsageError

TEXTS = [["a", "red", "ball"], ["a", "red", "cup"], ["a", "cup"]]


def test_words_lie_by_falling_count_and_then_by_alphabet() -> None:
    assert Vocabulary.build(TEXTS).words == (*SPECIAL_WORDS, "a", "cup", "red", "ball")


def test_rare_words_become_unknown() -> None:
    vocabulary = Vocabulary.build(TEXTS, min_count=2)
    assert "ball" not in vocabulary.words
    assert vocabulary.encode(["a", "ball"]) == [vocabulary.ids["a"], vocabulary.unk_id]


def test_max_size_keeps_the_most_frequent() -> None:
    assert Vocabulary.build(TEXTS, max_size=2).words == (*SPECIAL_WORDS, "a", "cup")


def test_decode_stops_at_eos_and_drops_begin_and_padding() -> None:
    vocabulary = Vocabulary.build(TEXTS)
    a, cup = vocabulary.encode(["a", "cup"])
    assert vocabulary.decode([vocabulary.bos_id, a, vocabulary.pad_id, cup, vocabulary.eos_id, a]) == [
        "a",
        "cup",
    ]


@pytest.mark.parametrize("pad_left", [False, True])
def test_padded_encoding_cuts_the_end_and_pads_the_chosen_side(pad_left: bool) -> None:
    vocabulary = Vocabulary.build(TEXTS)
    ids, lengths = vocabulary.encode_padded([["a"], ["a", "red", "cup"], []], 2, pad_left=pad_left)
    a, red = vocabulary.encode(["a", "red"])
    first = [vocabulary.pad_id, a] if pad_left else [a, vocabulary.pad_id]
    np.testing.assert_array_equal(ids, [first, [a, red], [vocabulary.pad_id] * 2])
    np.testing.assert_array_equal(lengths, [1, 2, 0])


def test_json_keeps_words_ids_and_fingerprint() -> None:
    vocabulary = Vocabulary(("end", "a", "b"), pad_id=0, bos_id=0, eos_id=0, unk_id=2)
    again = Vocabulary.from_json(vocabulary.to_json())
    assert again == vocabulary
    assert again.fingerprint() == vocabulary.fingerprint()
    assert again.fingerprint() != Vocabulary(("end", "b", "a"), 0, 0, 0, 2).fingerprint()


def test_mistakes_are_named() -> None:
    with pytest.raises(UsageError, match="'a' is there twice"):
        Vocabulary((*SPECIAL_WORDS, "a", "a"))
    with pytest.raises(UsageError, match="unk_id must be below 2 words, it is 3"):
        Vocabulary(("a", "b"), 0, 0, 0)
    with pytest.raises(CheckpointError, match="'eos_id' is wrong"):
        Vocabulary.from_json({"words": ["a"], "pad_id": 0, "bos_id": 0})
