"""What decoding gives: captions with the log-probability and the attention behind each word.

Legend: B pictures, N captions of each, K region slots, T steps.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stage2_models.vocabulary import Vocabulary


@dataclass(frozen=True)
class GeneratedCaption:
    """One caption with what led to it.

    words: the words without eos. log_probs: [words] float32, of each word. log_prob: sum over the words and,
    unless the caption was cut at the longest length, its end. attention: [words, K] float32, the weights over the
    picture's region slots at the step that emits the word. score: by which captions are ranked, `log_prob` after
    the length penalty.
    """

    words: tuple[str, ...]
    log_probs: NDArray[np.float32]
    log_prob: float
    attention: NDArray[np.float32]
    score: float = math.nan

    @property
    def text(self) -> str:
        """The words with spaces between."""
        return " ".join(self.words)


@dataclass(frozen=True)
class DecodedBatch:
    """The N best captions (or N samples) of B pictures, as tensors on the model's device.

    token_ids: [B, N, T] int64, filled with pad after eos. log_probs: [B, N, T], 0 after eos. attention: [B, N, T, K].
    scores: [B, N], falling; -inf where a beam found fewer captions.
    """

    token_ids: Tensor
    log_probs: Tensor
    attention: Tensor
    scores: Tensor

    def captions(self, vocabulary: Vocabulary) -> list[GeneratedCaption]:
        """Take the best caption of each picture to the host, in the order of the pictures."""
        return [captions[0] for captions in self.all_captions(vocabulary)]

    def all_captions(self, vocabulary: Vocabulary) -> list[list[GeneratedCaption]]:
        """Take all captions of each picture to the host, best first."""
        token_ids, scores = self.token_ids.tolist(), self.scores.tolist()
        log_probs, attention = self.log_probs.float().cpu().numpy(), self.attention.float().cpu().numpy()
        pictures = []
        for row, picture_ids in enumerate(token_ids):
            captions = []
            for place, ids in enumerate(picture_ids):
                if scores[row][place] == -math.inf and place > 0:
                    continue
                words, each = tuple(vocabulary.decode(ids)), log_probs[row, place]
                part = slice(0, len(words))
                captions.append(
                    GeneratedCaption(
                        words, each[part], float(each.sum()), attention[row, place, part], scores[row][place]
                    )
                )
            pictures.append(captions)
        return pictures
