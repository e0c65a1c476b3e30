"""Initial weights by layer type, in one visible place.

`model.apply(init_weights(scheme))` visits every layer and sets its own parameters; layers of a type that is
not named here keep what they made themselves. What was loaded (pretrained backbones, word vectors) must be
loaded afterwards, or be left out by calling `apply` on the parts that are new.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

Scheme = Literal["xavier", "kaiming"]


def init_weights(scheme: Scheme) -> Callable[[nn.Module], None]:
    """Make the function for `Module.apply`.

    - Linear: Xavier uniform, or Kaiming uniform for ReLU; bias zero.
    - Conv: the same, over the kernel's fan.
    - Embedding: normal with standard deviation 1 / sqrt(width), so that a word's vector has length about 1;
      the padding row zero.
    - LSTM, GRU and their cells: input weights as Linear, one gate at a time; recurrent weights orthogonal, one
      gate at a time; biases zero, but 1 for the LSTM's forget gate (the two biases add up).
    - LayerNorm, BatchNorm, GroupNorm: weight one, bias zero.

    Source: Glorot and Bengio 2010; He et al. 2015, arXiv 1502.01852; Saxe et al. 2014, arXiv 1312.6120 (orthogonal);
    Jozefowicz et al. 2015 (forget gate).
    """
    fill: Callable[[Tensor], object] = (
        nn.init.xavier_uniform_ if scheme == "xavier" else _kaiming_uniform_for_relu
    )

    @torch.no_grad()
    def initialise(module: nn.Module) -> None:
        match module:
            case nn.Linear() | nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
                weight = module.weight
                fill(weight)
                if is_parametrized(module, "weight"):  # as by weight norm: computed, so set through its parts
                    module.weight = weight
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            case nn.Embedding():
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.embedding_dim))
                if module.padding_idx is not None:
                    module.weight[module.padding_idx].zero_()
            case nn.LSTM() | nn.LSTMCell():
                _init_recurrent(module, fill, num_gates=4)
            case nn.GRU() | nn.GRUCell():
                _init_recurrent(module, fill, num_gates=3)
            case nn.LayerNorm() | nn.GroupNorm() | nn.BatchNorm1d() | nn.BatchNorm2d():
                if module.weight is not None:
                    nn.init.ones_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            case _:
                pass

    return initialise


def _kaiming_uniform_for_relu(weight: Tensor) -> None:
    nn.init.kaiming_uniform_(weight, nonlinearity="relu")


def _init_recurrent(module: nn.Module, fill: Callable[[Tensor], object], num_gates: int) -> None:
    """Set stacked gate matrices; PyTorch's order is input, forget, cell, output (LSTM) and reset, update, new."""
    for name, parameter in module.named_parameters(recurse=False):
        gates = parameter.chunk(num_gates)
        if "weight_hh" in name:
            for gate in gates:
                nn.init.orthogonal_(gate)
        elif "weight" in name:
            for gate in gates:
                fill(gate)
        else:
            nn.init.zeros_(parameter)
            if num_gates == 4 and "bias_ih" in name:
                nn.init.ones_(gates[1])
