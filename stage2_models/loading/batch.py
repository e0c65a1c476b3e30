"""What a loader yields: the regions of a batch of pictures as tensors, and which samples they belong to.

Plain records; the tensors lie in the loader's reused buffers, which wait until nobody holds a tensor or a
slice of one any more (see `buffers.py`). Legend: B samples, K region slots, D feature size.
"""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage2_models.regions import region_mask


@dataclass
class RegionBatch:
    """The regions of B pictures, padded to K slots, the largest number in this batch; padding is zero."""

    features: Tensor
    """[B, K, D] float16 or float32, as the store has them: convert on the device, after the copy."""
    boxes: Tensor
    """[B, K, 4] float32, xyxy in pixels of the original picture."""
    sizes: Tensor
    """[B, 2] float32, width and height of the pictures in pixels."""
    num_regions: Tensor
    """[B] int64, 0..K: the real regions are the first ones."""

    @property
    def mask(self) -> Tensor:
        """[B, K] bool, True where a region is real."""
        return region_mask(self.num_regions, self.features.shape[1])

    def pin_memory(self) -> Self:
        """Copy into page-locked memory what does not lie in it yet. Needs CUDA."""
        return type(self)(*(value if value.is_pinned() else value.pin_memory() for value in self._tensors()))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Move to a device; on the device it is on already, nothing is copied.

        With `non_blocking` the copy is queued on the current CUDA stream. The loader reuses a buffer only
        when everything on the loader's own current stream has run; a copy on another stream needs the batch
        to be kept until that stream is done, as everywhere in PyTorch.
        """
        return type(self)(*(value.to(device, non_blocking=non_blocking) for value in self._tensors()))

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


@dataclass
class LoadedBatch:
    """One batch: the samples' indices and the regions of their pictures, in the same order."""

    indices: NDArray[np.int64]
    """[B], which samples, as positions in the `sample_rows` that the loader was built with."""
    regions: RegionBatch

    def __len__(self) -> int:
        return len(self.indices)
