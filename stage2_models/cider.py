"""CIDEr-D of many captions against fixed references: the reward of self-critical training, in processes too.

The same numbers as pycocoevalcap's scorer ("CIDEr" there: clipped, with a Gaussian penalty on length), to the last
bit, but the document frequencies are those of all training references, counted once. An n-gram is a 64-bit hash,
so COCO's four million take 60 MB and travel to other processes as two arrays. No torch here.
Source: Vedantam et al. 2015, arXiv 1411.5726.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_N = 4
SIGMA = 6.0
END = "<end of the caption>"
"""The word that stands for the end where it counts; no text has a word with spaces."""
_UNKNOWN = 0

Words = Sequence[str]
NGrams = list[dict[int, float]]


class _Weighted(NamedTuple):
    """A caption: per n the weight of each n-gram, and the norm; how many 2-grams it has (CIDEr-D's length)."""

    weights: NGrams
    norms: list[float]
    length: int


class CiderD:
    """Scores captions of the pictures whose references it was made of.

    Args:
        references: the tokenised captions of each of N pictures, at least one of each.
        with_end: the end of a caption counts as its last word.
    """

    def __init__(self, references: Sequence[Sequence[Words]], *, with_end: bool) -> None:
        self.with_end = with_end
        self.word_ids: dict[str, int] = {END: 1}
        for caption in (caption for captions in references for caption in captions):
            for word in caption:
                self.word_ids.setdefault(word, len(self.word_ids) + 1)
        texts = [self.encode(caption) for captions in references for caption in captions]
        self._words = np.concatenate(texts) if texts else np.zeros(0, np.int32)
        self._starts = np.cumsum([0, *map(len, texts)])  # of each caption in the words
        self._captions = np.cumsum([0, *map(len, references)])  # of each picture in the captions
        self.log_pictures = np.log(float(len(references)))
        self._count_documents()

    def encode(self, words: Words) -> NDArray[np.int32]:
        """Give the words' numbers here, with the end where it counts; words that no reference has become 0."""
        ids = [self.word_ids.get(word, _UNKNOWN) for word in words]
        return np.array([*ids, self.word_ids[END]] if self.with_end else ids, np.int32)

    def score(self, pictures: Sequence[int], captions: Sequence[NDArray[np.int32]]) -> NDArray[np.float64]:
        """Score captions [P], each against the references of its picture; several may be of one picture.

        Args:
            pictures: [P], places among the references. captions: as `encode` gives them.
        """
        distinct = list(dict.fromkeys(int(picture) for picture in pictures))
        references = [self._references(picture) for picture in distinct]
        flat = [*captions, *(caption for each in references for caption in each)]
        weighted = iter(self._weigh(flat))
        candidates = [next(weighted) for _ in captions]
        truths = {
            picture: [next(weighted) for _ in each]
            for picture, each in zip(distinct, references, strict=True)
        }
        return np.array(
            [
                _cider_d(candidate, truths[int(picture)])
                for picture, candidate in zip(pictures, candidates, strict=True)
            ]
        )

    def agreement(self, captions: Sequence[NDArray[np.int32]]) -> NDArray[np.float64]:
        """Mean CIDEr-D of each of P captions against all the others, [P]; P at least 2."""
        weighted = list(self._weigh(captions))
        return np.array(
            [_cider_d(each, weighted[:place] + weighted[place + 1 :]) for place, each in enumerate(weighted)]
        )

    def _references(self, picture: int) -> list[NDArray[np.int32]]:
        first, last = self._captions[picture], self._captions[picture + 1]
        return [self._words[self._starts[i] : self._starts[i + 1]] for i in range(first, last)]

    def _count_documents(self) -> None:
        """Note in how many pictures each n-gram occurs, as sorted hashes and logarithms.

        Picture by picture in blocks, so that the n-grams of all captions never lie in memory at once.
        """
        hashes, counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        num_pictures = len(self._captions) - 1
        for start in range(0, num_pictures, 4096):
            found = []
            for picture in range(start, min(start + 4096, num_pictures)):
                found.append(np.unique(np.concatenate([*_ngrams(self._references(picture))])))
            block, times = np.unique(np.concatenate(found), return_counts=True)
            merged = np.concatenate([hashes, block])
            hashes, places = np.unique(merged, return_inverse=True)
            counts = np.bincount(places, np.concatenate([counts, times])).astype(np.int64)
        self._hashes, self._log_documents = hashes, np.log(np.maximum(1.0, counts))

    def _weigh(self, captions: Sequence[NDArray[np.int32]]) -> Iterator[_Weighted]:
        """Weigh the n-grams of each caption by how often it has them and how few pictures do."""
        orders = [_ngrams_by_order(caption) for caption in captions]
        every = np.concatenate([hashes for caption in orders for hashes in caption])
        places = np.searchsorted(self._hashes, every)
        places[places == len(self._hashes)] = 0
        known = self._hashes[places] == every if len(self._hashes) else np.zeros(len(every), bool)
        rarity = self.log_pictures - np.where(known, self._log_documents[places], 0.0)
        values, keys, start = rarity.tolist(), every.tolist(), 0
        for caption in orders:
            weights: NGrams = []
            norms = []
            for hashes in caption:
                counts: dict[int, int] = {}
                rarities: dict[int, float] = {}
                for place in range(start, start + len(hashes)):
                    key = keys[place]
                    counts[key] = counts.get(key, 0) + 1
                    rarities[key] = values[place]
                start += len(hashes)
                weight = {key: count * rarities[key] for key, count in counts.items()}
                weights.append(weight)
                norm = 0.0
                for value in weight.values():
                    norm += value**2
                norms.append(norm**0.5)
            yield _Weighted(weights, norms, len(caption[1]))


def _cider_d(candidate: _Weighted, references: Sequence[_Weighted]) -> float:
    """Ten times the mean over n and references of the clipped cosine, less for other lengths."""
    totals = [0.0] * MAX_N
    for reference in references:
        difference = float(candidate.length - reference.length)
        penalty = np.e ** (-(difference**2) / (2 * SIGMA**2))
        for n in range(MAX_N):
            theirs, value = reference.weights[n], 0.0
            for key, weight in candidate.weights[n].items():
                other = theirs.get(key, 0.0)
                value += min(weight, other) * other
            norms = candidate.norms[n] * reference.norms[n]
            totals[n] += (value / norms if norms != 0 else value) * penalty
    return float(np.mean(totals)) / len(references) * 10.0


def _ngrams(captions: Sequence[NDArray[np.int32]]) -> Iterator[NDArray[np.uint64]]:
    for caption in captions:
        yield from _ngrams_by_order(caption)


def _ngrams_by_order(words: NDArray[np.int32]) -> list[NDArray[np.uint64]]:
    """Hash the 1-grams, the 2-grams... of a caption, each in the order of the text."""
    mixed = _mix(words.astype(np.uint64))
    orders = [mixed]
    for n in range(1, MAX_N):
        # Each (n + 1)-gram from the n-gram that begins it; n keeps the orders apart.
        shorter = orders[-1][: max(0, len(words) - n)]
        orders.append(_mix(shorter * np.uint64(0x9E3779B97F4A7C15) + mixed[n:] + np.uint64(n)))
    return orders


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's last steps: every bit depends on every other (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
