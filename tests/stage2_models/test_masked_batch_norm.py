"""Batch normalisation over real regions against PyTorch's own on those regions alone."""

import torch
from torch import nn

from stage2_models.masked_batch_norm import MaskedBatchNorm

MASK = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])


def _both() -> tuple[MaskedBatchNorm, nn.BatchNorm1d]:
    torch.manual_seed(0)
    ours, theirs = MaskedBatchNorm(4), nn.BatchNorm1d(4)
    for norm in (ours, theirs):
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0, -1.0]))
            norm.bias.copy_(torch.tensor([0.1, -0.2, 0.3, 0.4]))
    return ours, theirs


def test_outputs_gradients_and_running_statistics_are_those_of_the_real_regions() -> None:
    ours, theirs = _both()
    values = torch.randn(3, 3, 4)
    for step in range(3):
        found = ours(values + step, MASK)
        expected = theirs((values + step)[MASK])
        torch.testing.assert_close(found[MASK], expected)
        assert (found[~MASK] == 0).all()
        found.square().sum().backward()
        expected.square().sum().backward()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])
    torch.testing.assert_close(ours.eval()(values, MASK)[MASK], theirs.eval()(values[MASK]))


def test_a_batch_with_one_region_or_none_stays_finite_and_keeps_the_running_deviation() -> None:
    ours, _ = _both()
    for mask in (
        MASK & False,
        MASK & torch.tensor([[True], [False], [False]]) & torch.tensor([True, False, False]),
    ):
        assert torch.isfinite(ours(torch.randn(3, 3, 4), mask)).all()
    assert torch.equal(ours.running_var, torch.ones(4)) if ours.running_var is not None else False
