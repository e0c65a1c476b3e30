"""LSTM steps whose weight gradients are taken once for the whole sequence.

Autograd adds a gradient of the weights' size at every step. But the gradient that reaches the gates of all steps is
known once the loop has run backwards, and then one product with all inputs gives the same sum: fewer and larger
matrix products, no additions. So inside the loop the weights are constants, and `RecurrentProduct` hands out
their gradient when that of the gates arrives. No second derivatives.

Legend: N sequences at a step, S the sum of N over the steps, H hidden, X input, B pictures, K region slots.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class RecurrentProduct:
    """Adds `input @ weight.T` to the gates of each step, for one run over a sequence.

    Args:
        gates: [S, 4H], what else adds to the gates, all steps one after the other; read `self.gates` afterwards.
        weight: [4H, X], used at every step.
    """

    def __init__(self, gates: Tensor, weight: Tensor) -> None:
        self.inputs: list[Tensor] = []
        self.constant = weight.detach().to(gates.dtype).t()  # converted once, where autocast is on
        self.gates: Tensor = _CollectProduct.apply(gates, weight, self.inputs)

    def step(self, gates: Tensor, inputs: Tensor) -> Tensor:
        """Give gates [N, 4H] + inputs [N, X] @ weight.T; to be called for every step, in order, with its gates."""
        self.inputs.append(inputs.detach())
        return torch.addmm(gates, inputs, self.constant)


class WeightedRegions:
    """The same for a weighted sum of each picture's region gates, one run over a sequence.

    Args:
        gates: [S, 4H] as above, where a step's N sequences are Q captions of B pictures, caption by caption.
        values: [B, K, 4H], averaged at every step by other weights; with several glimpses K counts each one's.
    """

    def __init__(self, gates: Tensor, values: Tensor) -> None:
        self.weights: list[Tensor] = []
        self.constant = values.detach()
        self.gates: Tensor = _CollectRegions.apply(gates, values, self.weights)

    def step(self, weights: Tensor) -> Tensor:
        """Give the sum of the values by weights [B, Q, K], as [Q * B, 4H]."""
        self.weights.append(weights.detach())
        return weighted_gates(weights, self.constant)


def weighted_gates(weights: Tensor, values: Tensor) -> Tensor:
    """Sum values [B, K, 4H] by weights [B, Q, K], caption by caption: [Q * B, 4H]."""
    return torch.bmm(weights, values).transpose(0, 1).flatten(0, 1)


def lstm_cell(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Give hidden and cell state [N, H] after the gates [N, 4H], in the order input, forget, output, cell."""
    if torch.is_grad_enabled() and gates.requires_grad:
        hidden, cell = _LSTMCell.apply(gates, cell)
        return hidden, cell
    size = cell.shape[1]
    opened = gates[:, : 3 * size].sigmoid()
    cell = opened[:, size : 2 * size] * cell + opened[:, :size] * gates[:, 3 * size :].tanh()
    return opened[:, 2 * size :] * cell.tanh(), cell


class _CollectProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, inputs: list[Tensor]) -> Tensor:  # noqa: ANN401
        ctx.inputs = inputs
        return gates.view_as(gates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        return grad, grad.t() @ torch.cat(ctx.inputs), None


class _CollectRegions(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, values: Tensor, weights: list[Tensor]) -> Tensor:  # noqa: ANN401
        ctx.weights = weights
        return gates.view_as(gates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        weights = torch.cat(ctx.weights, 1)  # [B, sum of Q, K]
        per_caption = grad.view(weights.shape[1], weights.shape[0], -1).transpose(0, 1)  # [B, sum of Q, 4H]
        return grad, torch.bmm(weights.transpose(1, 2), per_caption), None


class _LSTMCell(torch.autograd.Function):
    """The cell with its derivative written out: autograd's own makes a zero tensor of all gates for each slice."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        size = cell.shape[1]
        opened = gates[:, : 3 * size].sigmoid()
        candidate = gates[:, 3 * size :].tanh()
        new = torch.addcmul(opened[:, size : 2 * size] * cell, opened[:, :size], candidate)
        squashed = new.tanh()
        ctx.save_for_backward(opened, candidate, cell, squashed)
        return opened[:, 2 * size :] * squashed, new

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_hidden: Tensor, grad_cell: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        opened, candidate, cell, squashed = ctx.saved_tensors
        size = cell.shape[1]
        enter, forget, leave = opened.split(size, 1)
        grad_new = torch.addcmul(grad_cell, grad_hidden * leave, 1 - squashed * squashed)
        grad = torch.empty(len(cell), 4 * size, dtype=opened.dtype, device=opened.device)
        torch.mul(grad_new, candidate, out=grad[:, :size])
        torch.mul(grad_new, cell, out=grad[:, size : 2 * size])
        torch.mul(grad_hidden, squashed, out=grad[:, 2 * size : 3 * size])
        grad[:, : 3 * size] *= opened * (1 - opened)
        torch.mul(grad_new * enter, 1 - candidate * candidate, out=grad[:, 3 * size :])
        return grad, grad_new * forget
