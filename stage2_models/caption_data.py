"""Captions of the tables, encoded once for training and evaluation.

Reads the `captions` table of a split and says what is left out and why: empty captions, pictures that the
store does not have. One sample is a picture with its captions; a batch gathers them by the loader's indices.
Legend: N pictures, B batch, Q captions of a picture that are read at once, L longest caption.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from stage2_models.caption_tokens import CaptionTokens
from stage2_models.loader import DEFAULT_WORKERS, RegionBatch, build_loader
from stage2_models.loading.pinning import Pin
from stage2_models.vocabulary import Vocabulary, tokenise
from store_schema.coverage import Coverage, coverage
from store_schema.errors import ConfigError, UsageError
from store_schema.reader import RegionStore
from store_schema.tables import read_table

logger = logging.getLogger(__name__)

Words = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CaptionDataConfig:
    """Which captions are learned and judged, and how they are read."""

    batch_size: int = 50
    """Pictures in a batch, each with its captions."""
    captions_per_image: int = 5
    """Captions of a picture read in a batch; where it has more, they take turns over the epochs."""
    train_split: str = "train"
    eval_split: str = "val"
    min_word_count: int = 5
    """Words that occur less often in the training captions become "unknown"."""
    max_length: int = 20
    """Most words of a caption, read or written; longer ones lose their end."""
    max_missing_share: float = 0.1
    """Refuse to go on where the store lacks more than this share of a split's pictures."""
    eval_batch_size: int = 100
    max_eval_images: int = 0
    """Judge at most so many pictures in an evaluation, evenly spaced over the split; 0: all."""
    eval_beam_size: int = 1
    seed: int = 0
    num_workers: int = DEFAULT_WORKERS
    pin: Pin = "auto"

    def __post_init__(self) -> None:
        least = {
            "batch_size": 1, "captions_per_image": 1, "min_word_count": 1, "max_length": 1, "eval_batch_size": 1,
            "max_eval_images": 0, "eval_beam_size": 1, "seed": 0, "num_workers": 0,
        }  # fmt: skip
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ConfigError(
                    f"caption data: {name} must be at least {smallest}, it is {getattr(self, name)}"
                )
        if not 0.0 <= self.max_missing_share < 1.0:
            raise ConfigError(
                f"caption data: max_missing_share must be in [0, 1), it is {self.max_missing_share}"
            )


@dataclass(frozen=True)
class CaptionBatch:
    """Pictures with their captions. indices: [B], places in the caption set."""

    indices: NDArray[np.int64]
    regions: RegionBatch
    tokens: CaptionTokens

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """Move everything but the indices to a device."""
        return type(self)(
            self.indices,
            self.regions.to(device, non_blocking=non_blocking),
            self.tokens.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True)
class Captions:
    """The tokenised captions of a split's pictures, each with at least one, in the tables' order."""

    image_ids: tuple[str, ...]
    words: tuple[tuple[Words, ...], ...]

    def __len__(self) -> int:
        return len(self.image_ids)

    def select(self, places: NDArray[np.int64]) -> "Captions":
        """Keep the pictures at these places, in this order."""
        return Captions(
            tuple(self.image_ids[place] for place in places), tuple(self.words[place] for place in places)
        )

    def references(self) -> dict[str, tuple[Words, ...]]:
        """The pictures' captions by image_id."""
        return dict(zip(self.image_ids, self.words, strict=True))

    def all_words(self) -> Iterator[Words]:
        """Every caption of every picture."""
        return (caption for captions in self.words for caption in captions)


def read_captions(tables: Path, split: str, store: RegionStore, *, max_missing_share: float) -> Captions:
    """Read a split's captions of the pictures that the store has; what is left out is named in the log.

    Errors: those of the table; `UsageError` where the split has no captions, or the store lacks too many of its
    pictures.
    """
    frame = read_table(tables, "captions")
    selected = frame[frame["split"] == split]
    if selected.empty:
        raise UsageError(
            f"{tables}: no captions with split {split!r}; there are {sorted(set(frame['split'])) or 'none at all'}"
        )
    by_image: dict[str, list[Words]] = {}
    num_empty = 0
    for image_id, text in zip(selected["image_id"], selected["text"], strict=True):
        words = tuple(tokenise(text))
        num_empty += not words
        if words:
            by_image.setdefault(image_id, []).append(words)
    if num_empty:
        logger.warning("%s: %s captions of split %s have no words and are left out", tables, num_empty, split)
    image_ids = list(by_image)
    found = coverage(store, image_ids)
    if found.num_missing:
        _report_missing(found, split, store, max_missing_share)
    missing = set(found.missing)
    kept = [image_id for image_id in image_ids if image_id not in missing]
    if not kept:
        raise UsageError(f"{tables}: no caption of split {split!r} has any words")
    return Captions(tuple(kept), tuple(tuple(by_image[image_id]) for image_id in kept))


def _report_missing(found: Coverage, split: str, store: RegionStore, max_missing_share: float) -> None:
    message = (
        f"the store {store.path} has no regions of {found.num_missing} of the {found.num_images} pictures with "
        f"captions in split {split!r}: {found.why_missing()}"
    )
    if found.num_missing > max_missing_share * found.num_images:
        raise UsageError(
            f"{message}; that is more than data.max_missing_share {max_missing_share}: finish the store with "
            "'butd detect', see which with 'butd store coverage', or allow a larger share"
        )
    logger.warning("%s: they are left out", message)


@dataclass(frozen=True)
class EncodedCaptions:
    """A split's captions as arrays, and the store rows of their pictures.

    token_ids: [M, L], all captions, picture by picture. lengths: [M]. first: [N + 1], where each picture's captions
    begin. rows: [N], the pictures' rows in the store.
    """

    captions: Captions
    token_ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    first: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.captions)

    def tokens(
        self, indices: NDArray[np.int64], vocabulary: Vocabulary, *, captions_per_image: int, epoch: int = 0
    ) -> CaptionTokens:
        """Gather the captions of the pictures at `indices` [B], at most so many of each; more take turns."""
        counts = self.first[indices + 1] - self.first[indices]  # [B]
        turn = np.arange(captions_per_image)
        chosen = self.first[indices, None] + (epoch * captions_per_image + turn) % counts[:, None]  # [B, Q]
        lengths = np.where(turn < counts[:, None], self.lengths[chosen], -1)
        return CaptionTokens.from_arrays(self.token_ids[chosen], lengths, vocabulary)


def encode_captions(
    captions: Captions, vocabulary: Vocabulary, store: RegionStore, *, max_length: int
) -> EncodedCaptions:
    """Turn words into numbers and find the pictures' rows."""
    token_ids, lengths = vocabulary.encode_padded(list(captions.all_words()), max_length)
    first = np.cumsum([0, *(len(words) for words in captions.words)])
    return EncodedCaptions(captions, token_ids, lengths, first, store.rows(captions.image_ids))


def read_in_order(
    store: RegionStore, rows: NDArray[np.int64], batch_size: int
) -> Iterator[tuple[NDArray[np.int64], RegionBatch]]:
    """Read the regions of rows [N] once, in their order: places [B] in the rows, and their regions."""
    with build_loader(store, rows, batch_size=batch_size, seed=0, shuffle=False, workers=0) as loader:
        for loaded in loader.epoch(0):
            yield loaded.indices, loaded.regions
