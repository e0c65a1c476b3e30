"""Reading order of captions, by hand."""

import numpy as np

from stage2_models.caption_tokens import CaptionTokens
from stage2_models.vocabulary import Vocabulary

VOCABULARY = Vocabulary.build([["a", "b", "c"]])
BOS, EOS = VOCABULARY.bos_id, VOCABULARY.eos_id
A, B, C = VOCABULARY.encode(["a", "b", "c"])


def test_longest_captions_are_read_first_and_finished_ones_no_longer() -> None:
    token_ids = np.array([[[A, 0], [A, B]], [[C, 0], [0, 0]]])
    tokens = CaptionTokens.from_arrays(token_ids, np.array([[1, 2], [1, 0]]), VOCABULARY)
    assert tokens.captions_per_step == (2, 2, 1)
    # First picture: "a b" then "a"; second: "c" then the empty caption. Three steps with eos.
    read = tokens.inputs.tolist()
    assert read[:2] == [[BOS, BOS], [BOS, BOS]]
    assert [row[0] for row in read[2:]] == [A, A, B]
    assert read[2][1] == C
    predicted = dict(zip(tokens.positions.tolist(), tokens.targets.tolist(), strict=True))
    assert predicted == {0: A, 1: C, 2: A, 3: EOS, 4: B, 5: EOS, 6: EOS, 8: EOS}


def test_a_missing_caption_is_not_predicted() -> None:
    token_ids = np.array([[[A, B], [A, 0]], [[C, 0], [0, 0]]])
    tokens = CaptionTokens.from_arrays(token_ids, np.array([[2, 1], [1, -1]]), VOCABULARY)
    assert sorted(tokens.targets.tolist()) == sorted([A, B, EOS, A, EOS, C, EOS])
