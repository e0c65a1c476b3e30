"""Batch normalisation of regions: statistics over the real regions of all pictures of a batch, never the padding.

No step of it waits for the device, as gathering the real regions first would.
"""

import torch
from torch import Tensor, nn


class MaskedBatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the real regions; padded slots come out as zeros.

    In training mode a batch with a single region in all is normalised by its own mean alone, and leaves the
    running deviation as it was (a deviation of one value is not defined).
    """

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]  # regions have a mask
        """Normalise values [B, K, D] where the mask [B, K] holds."""
        real = mask.unsqueeze(-1)
        if self.training:
            mean, variance = self._batch_statistics(values, real)
        else:
            assert self.running_mean is not None
            assert self.running_var is not None
            mean, variance = self.running_mean, self.running_var
        scale = self.weight * (variance + self.eps).rsqrt()
        return ((values - mean) * scale + self.bias).masked_fill(~real, 0.0)

    def _batch_statistics(self, values: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and (biased) variance [D] of the real regions; the running ones follow, with the unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        count = real.sum().to(values.dtype)
        mean = values.masked_fill(~real, 0.0).sum((0, 1)) / count.clamp(min=1)
        squares = (values - mean).square().masked_fill(~real, 0.0).sum((0, 1))
        variance = squares / count.clamp(min=1)
        with torch.no_grad():
            unbiased = squares / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean, self.momentum * (count > 0))
            self.running_var.lerp_(unbiased, self.momentum * (count > 1))
            self.num_batches_tracked += 1
        return mean, variance
