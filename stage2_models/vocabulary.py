"""Words and their numbers: the vocabulary that a language model is trained with, kept in its checkpoint.

Texts are split by `tokenise`, which equals the official caption evaluation's tokenisation for ordinary text.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stage2_models.tokeniser import tokenise
from store_schema.errors import CheckpointError, UsageError
from store_schema.fingerprint import fingerprint

__all__ = ["BOS", "EOS", "PAD", "SPECIAL_WORDS", "UNK", "Vocabulary", "tokenise"]

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIAL_WORDS = (PAD, BOS, EOS, UNK)


@dataclass(frozen=True)
class Vocabulary:
    """Words in the order of their ids, with four special ones among them.

    Published checkpoints may use one word for several purposes (padding, begin and end), so the four ids are
    fields. By default they are the first four words.
    """

    words: tuple[str, ...]
    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    unk_id: int = 3
    ids: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check that the words are distinct and the special ids among them."""
        ids = {word: index for index, word in enumerate(self.words)}
        if len(ids) != len(self.words):
            repeated = next(word for word, count in Counter(self.words).items() if count > 1)
            raise UsageError(f"vocabulary: the words must be distinct, {repeated!r} is there twice")
        for name in ("pad_id", "bos_id", "eos_id", "unk_id"):
            if not 0 <= getattr(self, name) < len(self.words):
                raise UsageError(
                    f"vocabulary: {name} must be below {len(self.words)} words, it is {getattr(self, name)}"
                )
        object.__setattr__(self, "ids", ids)

    @classmethod
    def build(
        cls, texts: Iterable[Sequence[str]], *, min_count: int = 1, max_size: int | None = None
    ) -> Self:
        """Collect the words of tokenised texts.

        Args:
            texts: lists of words.
            min_count: words that occur less often become "unknown".
            max_size: keep at most so many words, the special ones not counted, the most frequent first.

        Returns:
            The vocabulary, most frequent words first, equally frequent ones in alphabetical order.
        """
        counts = Counter(word for text in texts for word in text)
        ordered = sorted(
            (word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w)
        )
        return cls(SPECIAL_WORDS + tuple(w for w in ordered[:max_size] if w not in SPECIAL_WORDS))

    def __len__(self) -> int:
        """Number of words V, the special ones included."""
        return len(self.words)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that are no words of a text."""
        return frozenset((self.pad_id, self.bos_id, self.eos_id, self.unk_id))

    def encode(self, words: Sequence[str]) -> list[int]:
        """Give the words' ids, `unk_id` for those not in the vocabulary; nothing is added."""
        return [self.ids.get(word, self.unk_id) for word in words]

    def encode_padded(
        self, texts: Sequence[Sequence[str]], max_length: int, *, pad_left: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Encode tokenised texts into one array, cut at `max_length` words.

        Args:
            texts: M lists of words.
            max_length: T; longer texts lose their end.
            pad_left: put the padding before the words, as the published VQA code does.

        Returns:
            [M, T] ids padded with `pad_id`, and the [M] numbers of words in each row.
        """
        token_ids = np.full((len(texts), max_length), self.pad_id, dtype=np.int64)
        lengths = np.zeros(len(texts), dtype=np.int64)
        for row, words in enumerate(texts):
            encoded = self.encode(words[:max_length])
            lengths[row] = len(encoded)
            start = max_length - len(encoded) if pad_left else 0
            token_ids[row, start : start + len(encoded)] = encoded
        return token_ids, lengths

    def decode(self, token_ids: Iterable[int]) -> list[str]:
        """Give the words up to the first `eos_id`, without padding and begin."""
        words = []
        for token in token_ids:
            if token == self.eos_id:
                break
            if token not in (self.pad_id, self.bos_id):
                words.append(self.words[token])
        return words

    def fingerprint(self) -> str:
        """Identify words and special ids, as hex sha256."""
        return fingerprint(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Give what `from_json` takes, as plain JSON."""
        return {
            "words": list(self.words),
            "pad_id": self.pad_id,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "unk_id": self.unk_id,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Rebuild a vocabulary from `to_json`'s result, as it stands in a checkpoint's model.json."""
        try:
            special = {name: int(value[name]) for name in ("pad_id", "bos_id", "eos_id", "unk_id")}
            return cls(tuple(str(word) for word in value["words"]), **special)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"vocabulary: 'words' and the four special ids expected, {error} is wrong"
            ) from error
