"""The reward against pycocoevalcap's own scorer, to the last bit."""

import random

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.cider.cider_scorer import CiderScorer

from stage2_models.cider import CiderD

WORDS = ["a", "man", "dog", "on", "the", "red", "ball", "runs", "sits", "with", "two"]


def _world(num: int, seed: int = 0) -> tuple[list[list[list[str]]], list[list[str]]]:
    rng = random.Random(seed)

    def caption() -> list[str]:
        return [rng.choice(WORDS) for _ in range(rng.randint(1, 12))]

    return [[caption() for _ in range(rng.randint(1, 5))] for _ in range(num)], [
        caption() for _ in range(num)
    ]


def test_scores_equal_the_official_scorers_bit_for_bit() -> None:
    references, candidates = _world(40)
    candidates[3], candidates[4] = [], ["zebra", "zebra"]
    candidates[5] = references[5][0]
    official = Cider().compute_score(
        {i: [" ".join(words) for words in each] for i, each in enumerate(references)},
        {i: [" ".join(words)] for i, words in enumerate(candidates)},
    )[1]
    scorer = CiderD(references, with_end=False)
    found = scorer.score(range(40), [scorer.encode(words) for words in candidates])
    assert found.tolist() == official.tolist()
    assert found[5] > 0


def test_document_frequencies_are_those_of_all_references_whatever_is_scored() -> None:
    references, candidates = _world(40)
    official = CiderScorer()
    for each, words in zip(references, candidates, strict=True):
        official += (" ".join(words), [" ".join(reference) for reference in each])
    scores = official.compute_score()[1]
    scorer = CiderD(references, with_end=False)
    some = [7, 3, 7, 30]
    found = scorer.score(some, [scorer.encode(candidates[i]) for i in some])
    assert found.tolist() == scores[some].tolist()


def test_the_end_may_count_as_a_word() -> None:
    references, candidates = _world(20)
    ended = [[[*words, "END"] for words in each] for each in references]
    with_end, by_hand = CiderD(references, with_end=True), CiderD(ended, with_end=False)
    found = with_end.score(range(20), [with_end.encode(words) for words in candidates])
    expected = by_hand.score(range(20), [by_hand.encode([*words, "END"]) for words in candidates])
    np.testing.assert_array_equal(found, expected)
    cut = with_end.score([0], [with_end.encode(candidates[0])[:-1]])
    assert cut[0] != pytest.approx(found[0])
