"""A small real task for the trainer's tests: a regression with dropout and draws in the loss.

Also a program, for tests that kill it: `python -m tests.pipeline.training.tiny_task RUN KEY=VALUE...`, where
keys of TinyTask set the task and all others are training keys.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import load_config
from pipeline.training.config import TrainingConfig
from pipeline.training.processes import rank_and_world_size
from pipeline.training.randomness import seed_everything
from pipeline.training.trainer import TrainResult, train
from store_schema.errors import ButdError

NUM_SAMPLES = 40


@dataclass
class TinyBatch:
    inputs: Tensor
    targets: Tensor
    ids: list[str]

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        return type(self)(
            self.inputs.to(device, non_blocking=non_blocking),
            self.targets.to(device, non_blocking=non_blocking),
            self.ids,
        )


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    batch_size: int = 4
    hidden: int = 16
    dropout: float = 0.3
    float64: bool = False
    ragged: bool = False
    """Samples have different numbers of items."""
    store: str = "store-a"
    best_metric: str = "fit"
    nan_at_step: int = -1
    step_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    save_seconds: float = 0.0
    seed: int = 0
    num_workers: int = 0
    num_samples: int = NUM_SAMPLES


class TinyTask:
    name = "tiny"
    higher_is_better = True

    def __init__(self, config: TinyConfig, *, rank: int = 0, world_size: int = 1) -> None:
        self.config, self.rank, self.world_size = config, rank, world_size
        self.best_metric, self.batch_size = config.best_metric, config.batch_size
        self.model: nn.Module = nn.Sequential(
            nn.Linear(8, config.hidden), nn.Tanh(), nn.Dropout(config.dropout), nn.Linear(config.hidden, 1)
        )
        data = np.random.default_rng(7)
        self.inputs = torch.from_numpy(data.standard_normal((config.num_samples, 8)).astype(np.float32))
        self.targets = self.inputs.sum(1, keepdim=True).sin()
        if config.float64:
            self.model.double()
            self.inputs, self.targets = self.inputs.double(), self.targets.double()
        self.seen: list[str] = []

    def identity(self) -> Mapping[str, str]:
        return {"model": f"tiny-{self.config.hidden}", "store": self.config.store}

    def describe(self) -> Mapping[str, Any]:
        time.sleep(self.config.save_seconds)  # asked for by who saves
        return {"name": "tiny", "hidden": self.config.hidden}

    def order(self, epoch: int) -> list[np.ndarray]:
        order = np.random.default_rng(np.random.SeedSequence([self.config.seed, epoch])).permutation(
            self.config.num_samples
        )
        step = self.batch_size * self.world_size
        mine = [
            order[start : start + step][self.rank :: self.world_size] for start in range(0, len(order), step)
        ]
        return [indices for indices in mine if len(indices)]

    def num_batches(self) -> int:
        return len(self.order(0))

    def batches(self, epoch: int, start: int) -> Iterator[TinyBatch]:
        for indices in self.order(epoch)[start:]:
            chosen = torch.from_numpy(indices)
            yield TinyBatch(self.inputs[chosen], self.targets[chosen], [f"sample-{i}" for i in indices])

    def batch_ids(self, batch: TinyBatch) -> list[str]:
        return batch.ids

    def loss(
        self, batch: TinyBatch, *, step: int, epoch: int
    ) -> tuple[Tensor, Tensor | int, Mapping[str, Tensor]]:
        time.sleep(self.config.step_seconds)
        self.seen.extend(batch.ids)
        error = (self.model(batch.inputs) - batch.targets).square()
        if self.config.ragged:  # a sample has 1 to 3 items
            weights = torch.tensor([1 + int(name.split("-")[1]) % 3 for name in batch.ids], dtype=error.dtype)
            return (error[:, 0] * weights).sum(), weights.sum(), {"error": error.detach().mean()}
        if self.config.dropout:
            error = error * (torch.rand_like(error) + 0.5)  # as scheduled sampling draws
        loss = error.sum() * (float("nan") if step == self.config.nan_at_step else 1.0)
        return loss, len(batch.ids), {"error": error.detach().mean()}

    def evaluate(self) -> Mapping[str, float]:
        time.sleep(self.config.evaluate_seconds)
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            torch.rand(3)  # an evaluation may draw
            error = (self.model(self.inputs) - self.targets).square().mean()
        self.model.train(was_training)
        return {"fit": -float(error), "error": float(error)}


def run_tiny(
    run_dir: Path, *settings: str, time_limit_seconds: float | None = None, resume: str | Path | None = "auto"
) -> TrainResult:
    """Train the tiny task with settings "key=value"; short by default: 3 epochs of 10 steps."""
    sections, task = sections_and_task(settings)
    return train(
        task,
        sections["training"],
        run_dir,
        resolved_config=sections,
        resume=resume,
        time_limit_seconds=time_limit_seconds,
    )


def sections_and_task(settings: tuple[str, ...]) -> tuple[dict[str, Any], TinyTask]:
    own = {field.name for field in fields(TinyConfig)} - {"seed"}
    base = ["epochs=3", "optimizer=adamw", "lr=0.01", "tensorboard=false", "num_threads=1", "log_every=4"]
    sets = [
        f"{'task' if setting.partition('=')[0] in own else 'training'}.{setting}"
        for setting in (*base, *settings)
    ]
    sections = load_config({"training": TrainingConfig, "task": TinyConfig}, None, sets)
    seed_everything(sections["training"].seed)
    rank, world_size = rank_and_world_size()
    return sections, TinyTask(sections["task"], rank=rank, world_size=world_size)


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    options = dict(argument.split("=", 1) for argument in sys.argv[2:] if argument.startswith("--"))
    sections, task = sections_and_task(
        tuple(argument for argument in sys.argv[2:] if not argument.startswith("--"))
    )
    try:
        result = train(task, sections["training"], Path(sys.argv[1]), resolved_config=sections)
    except ButdError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    if seen := options.get("--seen"):
        Path(f"{seen}-{task.rank}").write_text(json.dumps(task.seen))
    print(result.status)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
