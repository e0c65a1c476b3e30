"""A linear layer in blocks is the linear layer."""

import pytest
import torch
from torch.nn import functional

from stage2_models import blocked_linear as module
from stage2_models.blocked_linear import blocked_linear


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 200])
@pytest.mark.parametrize("with_bias", [True, False])
def test_blocks_give_the_whole(rows: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """23 outputs in blocks of 5: the last one is smaller."""
    monkeypatch.setattr(module, "_NUMBERS_OF_A_BLOCK", 15)
    inputs, weight, bias = torch.randn(rows, 3), torch.randn(23, 3), torch.randn(23) if with_bias else None
    with torch.no_grad():
        torch.testing.assert_close(
            blocked_linear(inputs, weight, bias), functional.linear(inputs, weight, bias)
        )


def test_autocast_and_gradients_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NUMBERS_OF_A_BLOCK", 15)
    inputs, weight = torch.randn(4, 3), torch.randn(23, 3, requires_grad=True)
    blocked_linear(inputs, weight).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert blocked_linear(inputs, weight).dtype == torch.bfloat16
