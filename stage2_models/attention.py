"""Top-down attention over the regions of a picture: unnormalised scores, softmax over the real regions.

The unnormalised score of each region (`logits`) and the `weights` are both returned. Several queries may look
at one picture at once (the five captions of a picture), so its regions are held and projected only once.

Source: Anderson et al. 2018, arXiv 1707.07998, sec. 3.2.1.
Legend: B pictures, Q queries for each, G glimpses, K region slots, D region feature, A attention, H query.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Normalisation = Literal["softmax", "none"]


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Give the softmax over the last axis among the slots where the mask holds; 0 elsewhere.

    A row without any real slot is all zeros (never NaN, also in its gradient).

    Args:
        logits: [..., K] float.
        mask: [..., K] bool, broadcast to the logits; True where a region is real.
    """
    lowest = torch.finfo(logits.dtype).min
    return logits.masked_fill(~mask, lowest).softmax(-1) * mask


def normalise_logits(logits: Tensor, mask: Tensor, normalise: Normalisation) -> Tensor:
    """Turn scores into weights, 0 where padded: softmax over the real regions, or the scores as they are."""
    return masked_softmax(logits, mask) if normalise == "softmax" else logits * mask


class _Attention(nn.Module):
    """The layers of both: regions and query to what is compared, and from there to a score for each glimpse."""

    def __init__(self, region_dim: int, query_dim: int, attention_dim: int, glimpses: int) -> None:
        super().__init__()
        self.region = nn.Linear(region_dim, attention_dim)
        self.query = nn.Linear(query_dim, attention_dim)
        self.score = nn.Linear(attention_dim, glimpses)

    def project(self, regions: Tensor) -> Tensor:
        """Project regions [B, K, D] to [B, K, A], once for all steps and queries."""
        projected: Tensor = self.region(regions)
        return projected


class AdditiveAttention(_Attention):
    """The paper's: a_i = w . tanh(W_v v_i + W_h h), softmax over the real regions; one glimpse.

    Args:
        region_dim: D, size of a region's feature.
        query_dim: H, size of the query.
        attention_dim: A; the cost of a step is one tanh over [B, Q, K, A].
    """

    def __init__(self, region_dim: int, query_dim: int, attention_dim: int) -> None:
        super().__init__(region_dim, query_dim, attention_dim, glimpses=1)

    def weigh(self, projected: Tensor, mask: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Score every region for every query: logits and weights, both [B, Q, 1, K] and 0 at padded slots.

        Args:
            projected: [B, K, A], from `project`.
            mask: [B, K] bool, True where a region is real.
            query: [B, Q, H] float.
        """
        hidden = torch.tanh(projected.unsqueeze(1) + self.query(query).unsqueeze(2))  # [B, Q, K, A]
        return _masked(self.score(hidden).transpose(2, 3), mask)


class ProductAttention(_Attention):
    """Several glimpses by products: a_gi = w_g . (W_v v_i * W_h h), each with its softmax over the real regions.

    Tells which colour belongs to which object, and sees two objects at once, where one additive glimpse learns it
    slowly or never. A step is one product of matrices: nothing of the size [B, Q, K, A] is made.
    Source: the low-rank bilinear attention of Kim et al. 2017, arXiv 1610.04325, as in the binding form of VQA.

    Args:
        region_dim, query_dim, attention_dim: as of `AdditiveAttention`. glimpses: G.
    """

    def weigh(self, projected: Tensor, mask: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Score every region for every query and glimpse: logits and weights [B, Q, G, K], 0 at padded slots.

        Args:
            projected, mask, query: as of `AdditiveAttention.weigh`.
        """
        asked = self.query(query).unsqueeze(2) * self.score.weight  # [B, Q, G, A]
        logits = torch.bmm(asked.flatten(1, 2), projected.transpose(1, 2)).view(*asked.shape[:3], -1)
        return _masked(logits + self.score.bias.unsqueeze(1), mask)


def _masked(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, Q, G, K] with 0 at padded slots, and their softmax over the real ones."""
    mask = mask[:, None, None]
    return logits.masked_fill(~mask, 0.0), masked_softmax(logits, mask)
