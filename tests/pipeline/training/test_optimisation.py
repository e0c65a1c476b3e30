"""Learning rates by hand, optimizers as configured."""

import math

import pytest
import torch
from torch import nn

from pipeline.training.config import TrainingConfig
from pipeline.training.optimisation import build_optimizer, learning_rate, load_optimizer_state


def rates(config: TrainingConfig, total_steps: int = 10, steps_per_epoch: int = 5) -> list[float]:
    return [learning_rate(config, step, total_steps, steps_per_epoch) for step in range(total_steps)]


def test_a_constant_rate_stays() -> None:
    assert rates(TrainingConfig(lr=0.5)) == [0.5] * 10


def test_warm_up_by_steps_and_by_fraction_reach_the_full_rate() -> None:
    expected = [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(TrainingConfig(lr=1.0, warmup=4))[:5] == expected
    assert rates(TrainingConfig(lr=1.0, warmup=0.4))[:5] == expected


def test_linear_and_poly_fall_to_zero_just_after_the_last_step() -> None:
    expected = [1 - step / 10 for step in range(10)]
    assert rates(TrainingConfig(lr=1.0, schedule="linear")) == pytest.approx(expected)
    squares = [value**2 for value in expected]
    assert rates(TrainingConfig(lr=1.0, schedule="poly", poly_power=2.0)) == pytest.approx(squares)


def test_cosine_falls_from_the_rate_to_the_final_one() -> None:
    config = TrainingConfig(lr=1.0, schedule="cosine", final_lr=0.2, warmup=2)
    expected = [0.5, 1.0, *(0.2 + 0.4 * (1 + math.cos(math.pi * step / 8)) for step in range(8))]
    assert rates(config) == pytest.approx(expected)


def test_step_decays_at_named_steps_or_at_ends_of_epochs() -> None:
    by_steps = TrainingConfig(lr=1.0, schedule="step", decay_steps=(3, 7))
    assert rates(by_steps) == pytest.approx([1.0] * 3 + [0.1] * 4 + [0.01] * 3)
    by_epochs = TrainingConfig(lr=1.0, schedule="step", decay_every_epochs=1, decay_factor=0.8)
    assert rates(by_epochs) == pytest.approx([1.0] * 5 + [0.8] * 5)


def test_exponential_decays_at_every_step_after_the_warm_up() -> None:
    config = TrainingConfig(lr=1.0, schedule="exponential", decay_factor=0.9, warmup=2)
    assert rates(config) == pytest.approx([0.5, 1.0, *(0.9**step for step in range(8))])


PUBLISHED = {
    "self-critical.pytorch: Adam, x0.8 every 3 epochs": (
        TrainingConfig(optimizer="adam", lr=5e-4, schedule="step", decay_every_epochs=3, decay_factor=0.8),
        {0: 5e-4, 2999: 5e-4, 3000: 4e-4, 6000: 3.2e-4, 29999: 5e-4 * 0.8**9},
    ),
    "Up-Down-Captioner: SGD, polynomial to 0 over 60,000 steps": (
        TrainingConfig(optimizer="sgd", lr=0.01, schedule="poly", poly_power=1.0, momentum=0.9),
        {0: 0.01, 15_000: 0.0075, 30_000: 0.005, 59_999: 0.01 / 60_000},
    ),
    "Up-Down-Captioner, self-critical: exponential": (
        TrainingConfig(optimizer="sgd", lr=0.001, schedule="exponential", decay_factor=0.99975),
        {0: 0.001, 1: 0.00099975, 1000: 0.001 * 0.99975**1000},
    ),
    "Adamax at one rate": (TrainingConfig(optimizer="adamax", lr=2e-3), {0: 2e-3, 59_999: 2e-3}),
}


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_rates_of_published_recipes(recipe: str) -> None:
    """With 1,000 steps an epoch, 60,000 in all. Sources: PUBLISHED of the shared data, captioning."""
    config, expected = PUBLISHED[recipe]
    found = {step: learning_rate(config, step, 60_000, 1000) for step in expected}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TrainingConfig(optimizer="adamw"), torch.optim.AdamW),
        (TrainingConfig(optimizer="adam"), torch.optim.Adam),
        (TrainingConfig(optimizer="adamax"), torch.optim.Adamax),
        (TrainingConfig(optimizer="sgd"), torch.optim.SGD),
    ],
)
def test_each_optimizer_updates_what_needs_a_gradient(
    config: TrainingConfig, expected: type[torch.optim.Optimizer]
) -> None:
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    before = layer.weight.detach().clone()
    optimizer = build_optimizer(layer.parameters(), config)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert type(optimizer) is expected
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]
    assert not torch.equal(layer.weight, before)


def test_a_loaded_state_keeps_moments_and_takes_the_configs_knobs() -> None:
    layer = nn.Linear(3, 2)
    old = build_optimizer(layer.parameters(), TrainingConfig(lr=0.1, weight_decay=0.5))
    layer(torch.ones(1, 3)).sum().backward()
    old.step()
    new = build_optimizer(layer.parameters(), TrainingConfig(lr=0.2, betas=(0.5, 0.9)))
    load_optimizer_state(new, old.state_dict())
    assert torch.equal(new.state[layer.weight]["exp_avg"], old.state[layer.weight]["exp_avg"])
    group = new.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.2, 0.0, (0.5, 0.9))
