"""Initial weights by layer type."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from pipeline.training.initialise import Scheme, init_weights


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(3)


def uniform_bound(weight: Tensor) -> float:
    """The bound of a uniform distribution, from its standard deviation."""
    return float(weight.std()) * math.sqrt(3)


@pytest.mark.parametrize(
    ("scheme", "bound"), [("xavier", math.sqrt(6 / (300 + 500))), ("kaiming", math.sqrt(6 / 300))]
)
def test_linear_layers_are_uniform_within_the_schemes_bound(scheme: Scheme, bound: float) -> None:
    layer = nn.Linear(300, 500)
    layer.apply(init_weights(scheme))
    assert float(layer.weight.detach().abs().max()) <= bound
    assert uniform_bound(layer.weight.detach()) == pytest.approx(bound, rel=0.01)
    assert not layer.bias.any()


def test_convolutions_count_their_kernel() -> None:
    layer = nn.Conv2d(32, 64, 3)
    layer.apply(init_weights("kaiming"))
    assert uniform_bound(layer.weight.detach()) == pytest.approx(math.sqrt(6 / (32 * 9)), rel=0.02)


def test_words_have_length_about_one_and_padding_none() -> None:
    layer = nn.Embedding(1000, 64, padding_idx=0)
    layer.apply(init_weights("xavier"))
    lengths = layer.weight.detach().norm(dim=1)
    assert lengths[0] == 0
    assert float(lengths[1:].mean()) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("layer", [nn.LSTM(20, 32, num_layers=2), nn.LSTMCell(20, 32)])
def test_lstm_gates_are_orthogonal_one_by_one_and_remember_at_first(layer: nn.Module) -> None:
    layer.apply(init_weights("xavier"))
    for name, parameter in layer.named_parameters():
        gates = parameter.detach().chunk(4)
        if "weight_hh" in name:
            assert all(torch.allclose(gate @ gate.T, torch.eye(32), atol=1e-5) for gate in gates)
        elif "bias_ih" in name:
            assert [float(gate.mean()) for gate in gates] == [0, 1, 0, 0]
        elif "bias_hh" in name:
            assert not parameter.any()


def test_gru_input_weights_are_scaled_by_gate() -> None:
    layer = nn.GRU(300, 128)
    layer.apply(init_weights("xavier"))
    weights = dict(layer.named_parameters())
    assert uniform_bound(weights["weight_ih_l0"].detach()) == pytest.approx(math.sqrt(6 / 428), rel=0.01)
    assert not weights["bias_ih_l0"].any()


def test_unknown_layers_keep_their_own_weights_and_nested_ones_are_reached() -> None:
    own, linear, norm = nn.PReLU(init=0.7), nn.Linear(4, 4), nn.LayerNorm(4)
    nn.init.constant_(norm.weight, 5.0)
    nn.Sequential(own, nn.Sequential(linear, norm)).apply(init_weights("xavier"))
    assert float(own.weight.detach()) == pytest.approx(0.7)
    assert not linear.bias.any()
    assert bool((norm.weight == 1).all())


def test_weight_normalised_layers_get_the_same_weights_as_plain_ones() -> None:
    plain, normalised = nn.Linear(30, 50), weight_norm(nn.Linear(30, 50), dim=None)  # type: ignore[arg-type]  # its stub lacks None
    for layer in (plain, normalised):
        torch.manual_seed(0)
        layer.apply(init_weights("xavier"))
    assert torch.allclose(normalised.weight, plain.weight, atol=1e-6)
