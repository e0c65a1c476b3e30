"""The trainer's knobs, the same for every task. Light: no torch.

What a task needs beyond them (batch size, model, vocabulary) is in the task's own dataclass.
"""

import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from store_schema.errors import ConfigError

SAME_RUN_KEYS = frozenset(
    {
        "device",
        "keep_last",
        "log_every",
        "num_threads",
        "num_workers",
        "pin",
        "pin_memory",
        "save_every_minutes",
        "save_every_steps",
        "score_workers",
        "tensorboard",
        "workers",
    }
)
"""Keys, in any section, that may change when a run goes on: they decide speed or what is kept, not what is learned."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, how fast and how carefully to train."""

    epochs: int = 10
    """Passes over the data; 0: as many as `max_steps` takes."""
    max_steps: int = 0
    """Optimizer steps after which training ends, if the epochs have not ended before; 0: no such limit."""

    optimizer: Literal["adamw", "adam", "adamax", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    """Of adamw, adam and adamax."""
    momentum: float = 0.9
    """Of sgd."""

    schedule: Literal["constant", "cosine", "linear", "poly", "step", "exponential"] = "constant"
    """How the learning rate falls, from the end of the warm-up to the last step."""
    warmup: float = 0.0
    """The rate rises linearly over so many steps; below 1: over this fraction of all steps."""
    final_lr: float = 0.0
    """Of cosine, linear and poly: the rate at the end."""
    poly_power: float = 1.0
    decay_factor: float = 0.1
    """Of step: what the rate is multiplied by at each decay; of exponential: at each step (0.99975, say)."""
    decay_steps: tuple[int, ...] = ()
    """Of step: the steps at which it decays."""
    decay_every_epochs: int = 0
    """Of step: it decays at the end of every so many epochs."""

    grad_clip: float = 0.0
    """Largest norm of all gradients together; 0: not clipped."""
    grad_clip_value: float = 0.0
    """Largest absolute value of one gradient element; 0: not clipped."""
    accumulate: int = 1
    """Batches per optimizer step. The loss is averaged over all their items."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the forward pass (autocast); float16 scales the loss. Weights and optimizer stay float32."""

    eval_every: int = 0
    """Evaluate, and keep the best, also every so many steps; 0: only at ends of epochs."""
    eval_every_epochs: int = 1
    """Evaluate at the end of every so many epochs; 0: not. The last step is always followed by an evaluation."""
    save_every_steps: int = 0
    save_every_minutes: float = 0.0
    """Save a checkpoint to resume from every so many steps or minutes, besides each epoch's; 0: not."""
    keep_last: int = 0
    """Keep the checkpoints of so many last epochs, and always the best; 0: of every epoch."""

    seed: int = 0
    init: Literal["default", "xavier", "kaiming"] = "default"
    """Initial weights by layer type (see initialise.py); default: as the layers made themselves."""
    device: str = "auto"
    """auto (CUDA if there is one), cpu, cuda or cuda:N."""
    num_threads: int = 0
    """Of torch on the CPU; 0: as torch decides."""
    compile: bool = False
    """Compile the model's forward with torch.compile."""
    ddp_unused_parameters: bool = False
    """Several processes: some parameters may get no gradient in a step (costs time in each step)."""
    log_every: int = 50
    """Steps between records in metrics.jsonl."""
    tensorboard: bool = True
    """Also write TensorBoard event files."""

    def __post_init__(self) -> None:
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"training.{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("accumulate", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training.{name} is {getattr(self, name)}; expected 1 or more")
        if self.epochs == 0 and self.max_steps == 0:
            raise ConfigError("training.epochs and training.max_steps are both 0; give one, or both")
        if not 0 < self.lr < float("inf"):
            raise ConfigError(f"training.lr is {self.lr}; expected a number above 0")
        if not all(0 <= beta < 1 for beta in (*self.betas, self.momentum)):
            raise ConfigError("training.betas and training.momentum must lie in [0, 1)")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"training.device is {self.device!r}; expected auto, cpu, cuda or cuda:N")
        self._check_schedule()
        self._check_without_effect()

    def _check_schedule(self) -> None:
        if self.final_lr > self.lr:
            raise ConfigError(f"training.final_lr {self.final_lr} is above training.lr {self.lr}")
        if self.schedule == "step" and bool(self.decay_steps) == bool(self.decay_every_epochs):
            raise ConfigError(
                "training.schedule 'step' needs either training.decay_steps or training.decay_every_epochs"
            )
        if self.schedule == "exponential" and not 0.9 <= self.decay_factor < 1:
            raise ConfigError(
                f"training.decay_factor is {self.decay_factor}; with training.schedule 'exponential' it applies to "
                "every step: expected a number from 0.9 to below 1"
            )
        if list(self.decay_steps) != sorted(set(self.decay_steps)) or any(s < 1 for s in self.decay_steps):
            raise ConfigError(
                f"training.decay_steps {list(self.decay_steps)}: expected rising steps from 1 on"
            )

    def _check_without_effect(self) -> None:
        """Refuse a knob that the chosen optimizer or schedule does not read."""
        defaults: dict[str, Any] = {field.name: field.default for field in fields(self)}
        for name, chooser, choices in _READ_ONLY_BY:
            chosen = getattr(self, chooser)
            if chosen not in choices and getattr(self, name) != defaults[name]:
                raise ConfigError(
                    f"training.{name} has no effect with training.{chooser} {chosen!r}; it belongs to "
                    + ", ".join(map(repr, choices))
                )


_NOT_NEGATIVE = (
    "epochs",
    "max_steps",
    "weight_decay",
    "warmup",
    "final_lr",
    "poly_power",
    "decay_factor",
    "decay_every_epochs",
    "grad_clip",
    "grad_clip_value",
    "eval_every",
    "eval_every_epochs",
    "save_every_steps",
    "save_every_minutes",
    "keep_last",
    "seed",
    "num_threads",
)
_READ_ONLY_BY = (
    ("betas", "optimizer", ("adamw", "adam", "adamax")),
    ("momentum", "optimizer", ("sgd",)),
    ("final_lr", "schedule", ("cosine", "linear", "poly")),
    ("poly_power", "schedule", ("poly",)),
    ("decay_factor", "schedule", ("step", "exponential")),
    ("decay_steps", "schedule", ("step",)),
    ("decay_every_epochs", "schedule", ("step",)),
)
