"""LSTM steps with collected weight gradients against PyTorch's own, step by step."""

import torch
from torch import nn

from stage2_models.recurrence import RecurrentProduct, WeightedRegions, lstm_cell

H = 3


def _reordered(weight: torch.Tensor) -> torch.Tensor:
    """PyTorch's gate order (input, forget, cell, output) to ours (input, forget, output, cell)."""
    enter, forget, cell, leave = weight.chunk(4)
    return torch.cat([enter, forget, leave, cell])


def test_lstm_cell_equals_pytorchs_with_its_gradients() -> None:
    torch.manual_seed(0)
    reference = nn.LSTMCell(2, H).double()
    inputs, hidden, cell = (torch.randn(4, n, dtype=torch.float64, requires_grad=True) for n in (2, H, H))
    expected = reference(inputs, (hidden, cell))
    gates = (
        inputs @ _reordered(reference.weight_ih).t() + hidden @ _reordered(reference.weight_hh).t()
        + _reordered(reference.bias_ih) + _reordered(reference.bias_hh)
    )  # fmt: skip
    found = lstm_cell(gates, cell)
    with torch.no_grad():
        without_graph = lstm_cell(gates, cell)
    upstream = [torch.randn(4, H, dtype=torch.float64) for _ in range(2)]
    variables = [inputs, hidden, cell, *reference.parameters()]
    wanted = torch.autograd.grad(expected, variables, upstream)
    for one, other, plain in zip(expected, found, without_graph, strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one, plain)
    for one, other in zip(wanted, torch.autograd.grad(found, variables, upstream), strict=True):
        torch.testing.assert_close(one, other)


def test_lstm_cell_derivative_is_right_to_finite_differences() -> None:
    gates = torch.randn(2, 4 * H, dtype=torch.float64, requires_grad=True)
    cell = torch.randn(2, H, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lstm_cell, (gates, cell))


def test_collected_weight_gradients_are_those_of_the_plain_loop() -> None:
    """Two captions of two pictures at the first two steps, one caption at the last."""
    torch.manual_seed(0)
    sizes = [4, 4, 2]
    gates = torch.randn(sum(sizes), H, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(H, H, dtype=torch.float64, requires_grad=True)
    values = torch.randn(2, 5, H, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, 2, 2, 5, dtype=torch.float64, requires_grad=True)

    def run(collect: bool) -> torch.Tensor:
        product = RecurrentProduct(gates, weight)
        regions = WeightedRegions(product.gates, values)
        parts = torch.split(regions.gates if collect else gates, sizes)
        state = torch.zeros(4, H, dtype=torch.float64)
        total = torch.zeros((), dtype=torch.float64)
        for step, part in enumerate(parts):
            state = state[: len(part)]
            looked = weights[step][:, : len(part) // 2]
            if collect:
                state = torch.tanh(product.step(part + regions.step(looked), state))
            else:
                attended = torch.einsum("bqk,bkh->qbh", looked, values).reshape(len(part), H)
                state = torch.tanh(part + attended + state @ weight.t())
            total = total + (state * state.detach().cos()).sum()
        return total

    plain, collected = run(collect=False), run(collect=True)
    torch.testing.assert_close(plain, collected)
    variables = [gates, weight, values, weights]
    for one, other in zip(
        torch.autograd.grad(plain, variables), torch.autograd.grad(collected, variables), strict=True
    ):
        torch.testing.assert_close(one, other)
