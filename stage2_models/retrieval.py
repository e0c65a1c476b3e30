"""Captions without a model: those that people wrote for the training pictures that look most alike.

The baseline that a captioner must beat to have learned more than to look up. Pictures are compared by the mean of
their regions, z-scored by the training pictures and scaled to length 1, so the cosine decides. Among the captions of
the nearest pictures the one that agrees best with the others is taken.
Source: Devlin et al. 2015, arXiv 1505.04467 (there with CIDEr or BLEU, here with CIDEr-D).
Legend: N training pictures, M described pictures, D feature size.
"""

import numpy as np
from numpy.typing import NDArray

from stage2_models.caption_data import Captions, Words
from stage2_models.cider import CiderD
from store_schema.reader import RegionStore

MAX_TRAINING_PICTURES = 20_000
"""Of a larger training part so many are searched, evenly spaced: all their features are read once."""


def retrieve_captions(
    train: Captions,
    train_store: RegionStore,
    image_ids: tuple[str, ...],
    store: RegionStore,
    *,
    pictures: int,
) -> dict[str, Words]:
    """Give every picture a training caption of the `pictures` training pictures that are most like it.

    Args:
        train: the training captions. train_store: has their pictures.
        image_ids: what is described, M. store: has them, with features of the same detector.
        pictures: how many of the nearest give their captions; 1: the nearest picture alone.

    Returns:
        By image_id, the words of one caption each: of all those of the nearest pictures the one with the largest
        mean CIDEr-D to the others; the first of equals.
    """
    chosen = np.unique(np.linspace(0, len(train) - 1, MAX_TRAINING_PICTURES).round().astype(np.int64))
    train = train.select(chosen)
    known, described = _means(train_store, train.image_ids), _means(store, image_ids)
    mean, deviation = known.mean(0), known.std(0) + 1e-6
    known, described = _unit((known - mean) / deviation), _unit((described - mean) / deviation)
    likeness = described @ known.T  # [M, N]
    nearest = np.argsort(-likeness, axis=1, kind="stable")[:, :pictures]
    frequencies = CiderD(train.words, with_end=False)
    return {
        image_id: _most_agreed([words for place in row for words in train.words[place]], frequencies)
        for image_id, row in zip(image_ids, nearest, strict=True)
    }


def _means(store: RegionStore, image_ids: tuple[str, ...]) -> NDArray[np.float32]:
    """[.., D], the mean of each picture's regions; zeros for a picture without."""
    views = store.feature_views(store.rows(image_ids))
    return np.stack([view.astype(np.float32).sum(0) / max(1, len(view)) for view in views])


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths: NDArray[np.float32] = np.sqrt(np.square(values).sum(1, keepdims=True))
    unit: NDArray[np.float32] = np.divide(values, np.maximum(lengths, 1e-6), dtype=np.float32)
    return unit


def _most_agreed(captions: list[Words], frequencies: CiderD) -> Words:
    distinct = list(dict.fromkeys(captions))
    if len(distinct) == 1:
        return distinct[0]
    agreement = frequencies.agreement([frequencies.encode(words) for words in captions])
    return captions[int(agreement.argmax())]
