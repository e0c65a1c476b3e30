"""Top-down attention over the regions of a picture: additive scores, softmax over the real regions.

The unnormalised score of each region (`logits`) and the `weights` are both returned. Several queries may look
at one picture at once (the five captions of a picture), so its regions are held and projected only once.

Source: Anderson et al. 2018, arXiv 1707.07998, sec. 3.2.1: a_i = w^T tanh(W_v v_i + W_h h), softmax over i.
Legend: B pictures, Q queries for each, K region slots, D region feature, A attention, H query.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Normalisation = Literal["softmax", "none"]


class Attention(NamedTuple):
    """What a query sees of its picture.

    attended: [B, Q, D], the sum of the regions by their weights. logits: [B, Q, K], unnormalised scores, 0 at
    padded slots. weights: [B, Q, K], 0 at padded slots; they sum to 1 unless the picture has no regions or
    `normalise` is "none". Without a query axis on the way in there is none on the way out.
    """

    attended: Tensor
    logits: Tensor
    weights: Tensor


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


class AdditiveAttention(nn.Module):
    """Additive attention; the regions' part is computed once (`project`), not at every step.

    Args:
        region_dim: D, size of a region's feature.
        query_dim: H, size of the query.
        attention_dim: A; the cost of a step is one tanh over [B, Q, K, A].
        normalise: "softmax" over the real regions (the paper), or "none".
    """

    def __init__(
        self, region_dim: int, query_dim: int, attention_dim: int, *, normalise: Normalisation = "softmax"
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.region = nn.Linear(region_dim, attention_dim)
        self.query = nn.Linear(query_dim, attention_dim)
        self.score = nn.Linear(attention_dim, 1)

    def project(self, regions: Tensor) -> Tensor:
        """Project regions [B, K, D] to [B, K, A], once for all steps and queries."""
        projected: Tensor = self.region(regions)
        return projected

    def weigh(self, projected: Tensor, mask: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Score every region for every query: logits and weights, both [B, Q, K] and 0 at padded slots.

        Args:
            projected: [B, K, A], from `project`.
            mask: [B, K] bool, True where a region is real.
            query: [B, Q, H] float.
        """
        mask = mask.unsqueeze(1)  # [B, 1, K]
        hidden = torch.tanh(projected.unsqueeze(1) + self.query(query).unsqueeze(2))  # [B, Q, K, A]
        logits = self.score(hidden).squeeze(-1).masked_fill(~mask, 0.0)
        return logits, normalise_logits(logits, mask, self.normalise)

    def forward(self, regions: Tensor, projected: Tensor, mask: Tensor, query: Tensor) -> Attention:
        """Let every query look at its picture.

        Args:
            regions: [B, K, D] float, zero at padded slots. projected, mask: as for `weigh`.
            query: [B, Q, H] or [B, H] float.
        """
        logits, weights = self.weigh(projected, mask, query if query.dim() == 3 else query.unsqueeze(1))
        attended = torch.bmm(weights, regions)  # [B, Q, D]
        if query.dim() == 2:
            return Attention(attended.squeeze(1), logits.squeeze(1), weights.squeeze(1))
        return Attention(attended, logits, weights)
