"""The trainer's knobs refuse what makes no sense."""

from typing import Any

import pytest

from pipeline.training.config import TrainingConfig
from store_schema.errors import ConfigError


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"epochs": 0}, "both 0"),
        ({"epochs": -1}, r"training\.epochs is -1; expected 0 or more"),
        ({"lr": 0.0}, "expected a number above 0"),
        ({"lr": float("nan")}, "expected a number above 0"),
        ({"accumulate": 0}, "accumulate is 0; expected 1 or more"),
        ({"device": "gpu"}, "expected auto, cpu, cuda or cuda:N"),
        ({"betas": (0.9, 1.0)}, "must lie in"),
        ({"schedule": "step"}, "needs either"),
        ({"schedule": "step", "decay_steps": (3,), "decay_every_epochs": 2}, "needs either"),
        ({"schedule": "step", "decay_steps": (7, 3)}, "expected rising steps"),
        ({"schedule": "exponential"}, r"decay_factor is 0\.1; .* applies to every step"),
        ({"schedule": "cosine", "final_lr": 1.0}, "above"),
        ({"momentum": 0.5}, "momentum has no effect with training.optimizer 'adamw'; it belongs to 'sgd'"),
        ({"optimizer": "sgd", "betas": (0.5, 0.9)}, "betas has no effect"),
        ({"final_lr": 1e-5}, "final_lr has no effect with training.schedule 'constant'"),
        ({"schedule": "cosine", "decay_steps": (3,)}, "decay_steps has no effect"),
    ],
)
def test_a_knob_out_of_range_or_without_effect_is_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**knobs)


def test_length_is_by_epochs_or_by_steps() -> None:
    assert TrainingConfig(epochs=0, max_steps=5).max_steps == 5
    assert TrainingConfig(epochs=2, max_steps=5).epochs == 2
