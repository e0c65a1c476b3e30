"""Which samples make which batch: a pure function of (seed, epoch, rank, world size).

An epoch is one permutation, cut into *global* batches of `batch_size * world_size` samples; rank r of W takes
every W-th sample of each, from place r on. So W processes see in each step exactly what one process with a
W times larger batch sees, every rank has the same number of batches, and no sample comes twice or is lost.
Nothing here reads data or keeps state: the position in an epoch is the number of batches consumed.
"""

import numpy as np
from numpy.typing import NDArray

BUCKET_BATCHES = 50
"""Global batches whose samples are sorted by length together: enough that a batch is nearly of one length,
few enough that the order stays random."""


def global_batch_sizes(num_samples: int, batch_size: int, *, world_size: int, drop_last: bool) -> list[int]:
    """Give the number of samples, over all ranks, in each batch of an epoch.

    All are `batch_size * world_size` but the last. If fewer samples than ranks remain for the last, it takes
    some from the one before, so that no rank of a DistributedDataParallel run is without data. An empty batch
    on a rank can only arise with `batch_size=1` or with fewer samples than ranks altogether.
    """
    full_size = batch_size * world_size
    num_full, remainder = divmod(num_samples, full_size)
    sizes = [full_size] * num_full
    if remainder and not drop_last:
        borrowed = max(world_size - remainder, 0) if num_full and batch_size > 1 else 0
        if borrowed:
            sizes[-1] -= borrowed
        sizes.append(remainder + borrowed)
    return sizes


def epoch_batches(
    num_samples: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    drop_last: bool = False,
    rank: int = 0,
    world_size: int = 1,
    lengths: NDArray[np.int64] | None = None,
) -> list[NDArray[np.int64]]:
    """Give this rank's batches of one epoch, in order, as sample indices.

    Args:
        num_samples: samples in the data set; indices are 0..num_samples - 1.
        batch_size: samples in a batch on one rank.
        seed, epoch: both feed `SeedSequence`, so that no two pairs share a permutation.
        shuffle: False keeps the samples' own order (and `seed`, `epoch` have no effect).
        drop_last: leave out the last batch where it is smaller than the others.
        lengths: [num_samples], words of each sample's question or caption. Samples of like length then share
            a batch: sorted within groups of `BUCKET_BATCHES` batches, the batches themselves in random order;
            a last, smaller batch stays last and holds samples of any length. Without shuffling, all samples
            are sorted, longest first, so that too little memory shows at once.

    Returns:
        An index array [<= batch_size] for each batch; sizes differ between ranks by at most one.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, epoch]))
    order = rng.permutation(num_samples) if shuffle else np.arange(num_samples)
    sizes = global_batch_sizes(num_samples, batch_size, world_size=world_size, drop_last=drop_last)
    order = order[: sum(sizes)]
    if lengths is not None and not shuffle:
        order = order[np.argsort(-lengths[order], kind="stable")]
    elif lengths is not None:
        num_full = sizes.count(batch_size * world_size)
        order = _bucket(order, lengths, num_full, batch_size * world_size, rng)
    batches = np.split(order, np.cumsum(sizes)[:-1]) if sizes else []
    return [batch[rank::world_size] for batch in batches]


def _bucket(
    order: NDArray[np.int64],
    lengths: NDArray[np.int64],
    num_full: int,
    full_size: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Bring samples of like length together in the first `num_full` batches, and shuffle those batches."""
    buckets = []
    for start in range(0, num_full, BUCKET_BATCHES):
        bucket = order[start * full_size : min(start + BUCKET_BATCHES, num_full) * full_size]
        buckets.append(bucket[np.argsort(lengths[bucket], kind="stable")])
    if not buckets:
        return order
    batches = np.concatenate(buckets).reshape(num_full, full_size)
    return np.concatenate([batches[rng.permutation(num_full)].reshape(-1), order[num_full * full_size :]])
