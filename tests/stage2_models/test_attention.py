"""Attention against loops, and its treatment of padding."""

import itertools
import math

import pytest
import torch

from stage2_models.attention import AdditiveAttention, ProductAttention, masked_softmax
from stage2_models.regions import region_mask


@pytest.mark.parametrize("attention", [AdditiveAttention(5, 4, 3), ProductAttention(5, 4, 3, 2)])
@torch.no_grad()
def test_attention_equals_loops(attention: AdditiveAttention | ProductAttention) -> None:
    torch.manual_seed(0)
    regions, queries, counts = torch.randn(2, 6, 5), torch.randn(2, 2, 4), [4, 6]
    mask = region_mask(torch.tensor(counts), 6)
    logits, weights = attention.weigh(attention.project(regions), mask, queries)
    glimpses = len(attention.score.weight)
    assert logits.shape == weights.shape == (2, 2, glimpses, 6)
    for (b, count), q, g in itertools.product(enumerate(counts), range(2), range(glimpses)):
        scores = []
        for k in range(count):
            of_region, of_query = attention.region(regions[b, k]), attention.query(queries[b, q])
            is_product = isinstance(attention, ProductAttention)
            hidden = of_region * of_query if is_product else torch.tanh(of_region + of_query)
            scores.append(((attention.score.weight[g] * hidden).sum() + attention.score.bias[g]).item())
        exponentials = [math.exp(score) for score in scores]
        expected = [e / sum(exponentials) for e in exponentials]
        assert logits[b, q, g].tolist() == pytest.approx([*scores, *[0.0] * (6 - count)], abs=1e-5)
        assert weights[b, q, g].tolist() == pytest.approx([*expected, *[0.0] * (6 - count)], abs=1e-5)


def test_a_picture_without_regions_has_zero_weights_and_finite_gradients() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    weights = masked_softmax(logits, region_mask(torch.tensor([0, 2]), 3))
    assert weights[0].tolist() == [0.0] * 3
    assert weights[1].sum().item() == pytest.approx(1.0)
    (weights * torch.randn(2, 3)).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0].tolist() == [0.0] * 3
