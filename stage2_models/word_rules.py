"""Which words may follow others in a caption, and at what price: log-probabilities before a word is chosen.

The probabilities stay the model's own: what is forbidden gets -inf, and the rest is not renormalised.
Legend: N sequences, V words, T words written so far.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stage2_models.decoding_config import DecodingConfig
from stage2_models.vocabulary import Vocabulary

BAD_ENDINGS = frozenset(
    (
        "a",
        "an",
        "the",
        "in",
        "for",
        "at",
        "of",
        "with",
        "before",
        "after",
        "on",
        "upon",
        "near",
        "to",
        "is",
        "are",
        "am",
    )
)
"""Words after which no caption should end: self-critical.pytorch's list."""

_TRIMMED_ENDINGS = frozenset(
    ("a", "an", "the", "in", "for", "at", "of", "with", "on", "to", "this", "that", "his", "her")
)
"""Those that `trim_bad_endings` takes away: the list differs, in the published code too."""


class WordRules:
    """The rules of a decoding configuration for a vocabulary, applied step by step."""

    def __init__(self, config: DecodingConfig, vocabulary: Vocabulary, device: torch.device) -> None:
        self.config, self.eos_id = config, vocabulary.eos_id
        never = {vocabulary.pad_id, vocabulary.bos_id}
        if not config.allow_unk:
            never.add(vocabulary.unk_id)
        self._never = torch.tensor(sorted(never - {vocabulary.eos_id}), dtype=torch.long, device=device)
        bad = [word in BAD_ENDINGS for word in vocabulary.words]
        self._bad_endings = torch.tensor(bad, device=device) if config.forbid_bad_endings else None

    @property
    def reads_history(self) -> bool:
        """Whether more than the last word has to be known."""
        return self.config.trigram_penalty > 0

    def log_probs(self, logits: Tensor, step: int, last: Tensor, history: Tensor | None) -> Tensor:
        """Turn logits [N, V] into log-probabilities under the rules, for word `step` (from 0).

        Args:
            last: [N], the word before. history: [N, step], all words before, where `reads_history`.
        """
        config = self.config
        if config.temperature != 1.0 and (step > 0 or config.temper_first_word):
            logits = logits / config.temperature
        log_probs = logits.float().log_softmax(-1).index_fill_(1, self._never, -math.inf)
        if step < config.min_length:
            log_probs[:, self.eos_id] = -math.inf
        if step > 0 and config.no_repeat:
            log_probs.scatter_(1, last.unsqueeze(1), -math.inf)
        if step > 0 and self._bad_endings is not None:
            log_probs[:, self.eos_id].masked_fill_(self._bad_endings[last], -math.inf)
        if step > 2 and history is not None:
            self._punish_repeated_trigrams(log_probs, history)
        return log_probs

    def _punish_repeated_trigrams(self, log_probs: Tensor, history: Tensor) -> None:
        """Take the penalty from each word that would end three words already written in this order, per time."""
        firsts, seconds, thirds = history[:, :-2], history[:, 1:-1], history[:, 2:]  # [N, T - 2]
        same = (firsts == history[:, -2:-1]) & (seconds == history[:, -1:])
        price = torch.zeros_like(firsts, dtype=log_probs.dtype).masked_fill_(
            same, -self.config.trigram_penalty
        )
        log_probs.scatter_add_(1, thirds, price)


def trim_bad_endings(words: Sequence[str]) -> list[str]:
    """Take articles and prepositions off the end of a caption; one of nothing else stays as it is."""
    kept = len(words)
    while kept and words[kept - 1] in _TRIMMED_ENDINGS:
        kept -= 1
    return list(words[:kept] or words)
