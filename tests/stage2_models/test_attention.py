"""Attention against loops, and its treatment of padding."""

import math

import pytest
import torch

from stage2_models.attention import AdditiveAttention, Normalisation, masked_softmax
from stage2_models.regions import region_mask


@pytest.mark.parametrize("normalise", ["softmax", "none"])
def test_attention_equals_loops(normalise: Normalisation) -> None:
    torch.manual_seed(0)
    attention = AdditiveAttention(5, 4, 3, normalise=normalise)
    regions, queries, counts = torch.randn(2, 6, 5), torch.randn(2, 2, 4), [4, 6]
    mask = region_mask(torch.tensor(counts), 6)
    seen = attention(regions, attention.project(regions), mask, queries)
    for b, count in enumerate(counts):
        for q in range(2):
            scores = []
            for k in range(count):
                hidden = torch.tanh(attention.region(regions[b, k]) + attention.query(queries[b, q]))
                scores.append(((attention.score.weight[0] * hidden).sum() + attention.score.bias[0]).item())
            exponentials = [math.exp(score) for score in scores]
            weights = [e / sum(exponentials) for e in exponentials] if normalise == "softmax" else scores
            attended = sum(weight * regions[b, k] for k, weight in enumerate(weights))
            assert seen.logits[b, q].tolist() == pytest.approx([*scores, *[0.0] * (6 - count)], abs=1e-5)
            assert seen.weights[b, q].tolist() == pytest.approx([*weights, *[0.0] * (6 - count)], abs=1e-5)
            torch.testing.assert_close(seen.attended[b, q], attended)


def test_single_queries_equal_queries_of_one() -> None:
    torch.manual_seed(0)
    attention = AdditiveAttention(5, 4, 3)
    regions, query, mask = torch.randn(2, 6, 5), torch.randn(2, 4), torch.ones(2, 6, dtype=torch.bool)
    single = attention(regions, attention.project(regions), mask, query)
    several = attention(regions, attention.project(regions), mask, query.unsqueeze(1))
    for one, many in zip(single, several, strict=True):
        torch.testing.assert_close(one, many.squeeze(1))


def test_a_picture_without_regions_has_zero_weights_and_finite_gradients() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    weights = masked_softmax(logits, region_mask(torch.tensor([0, 2]), 3))
    assert weights[0].tolist() == [0.0] * 3
    assert weights[1].sum().item() == pytest.approx(1.0)
    (weights * torch.randn(2, 3)).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0].tolist() == [0.0] * 3
