"""What a checkpoint holds, in memory: model, optimizer, loss scale, random numbers, progress.

How training begins (anew, or from a checkpoint) and how it is saved. On a CPU what was saved and restored goes
on bit for bit as what was not.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch

from pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from pipeline.training.config import TrainingConfig
from pipeline.training.initialise import init_weights
from pipeline.training.optimisation import build_optimizer, load_optimizer_state
from pipeline.training.processes import Processes
from pipeline.training.randomness import rng_state, seed_everything, set_rng_state
from pipeline.training.records import Best, CheckpointRecord, point_to, prune, read_record
from pipeline.training.resume import Start, check_identity
from pipeline.training.runs import RunFolder, software_versions
from pipeline.training.task import B, Task
from store_schema.errors import CheckpointError, UsageError

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Progress:
    """Where a run is."""

    step: int = 0
    epoch: int = 0
    """Epochs done."""
    position: int = 0
    """Batches consumed of the epoch begun, on each process."""
    seconds: float = 0.0
    """Spent on training, over all sessions."""
    best: Best | None = None
    pending: bool = False
    """The run was stopped before it did what is due after this step: evaluation, the epoch's checkpoint."""
    sums: dict[str, float] = field(default_factory=dict)
    """Since the last record of metrics: steps, loss, items, grad_norm and the task's parts, added up."""


class TrainingState(Generic[B]):
    """Everything that training changes."""

    def __init__(self, task: Task[B], config: TrainingConfig, processes: Processes, start: Start) -> None:
        """Seed, initialise or load.

        Raises:
            CheckpointError: the checkpoint is damaged, or of another model, vocabulary or store.
            UsageError: there is nothing to train (on).
        """
        self.task, self.config, self.processes = task, config, processes
        if processes.largest(int(task.num_batches() < 1)):
            raise UsageError("there is nothing to train on: an epoch has no batches for one of the processes")
        self.num_batches = processes.largest(task.num_batches())
        """In an epoch, on each process; one whose share is smaller repeats a batch without counting it."""
        seed_everything(config.seed, rank=processes.rank)
        if start.checkpoint is None and config.init != "default":
            task.model.apply(init_weights(config.init))
        task.model.to(processes.device)
        self.optimizer = build_optimizer(task.model.parameters(), config)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=config.precision == "float16")
        self.progress = Progress()
        if start.checkpoint is not None:
            self._restore(start.checkpoint, is_branch=start.is_branch)
        self.total_steps = self._count_steps()
        if start.is_branch and self.progress.step >= self.total_steps:
            raise UsageError(
                f"nothing is left to train: {start.checkpoint} has done {self.progress.step} steps of "
                f"{self.total_steps}; raise it with --set training.epochs=... or training.max_steps=..."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a whole epoch."""
        return math.ceil(self.num_batches / self.config.accumulate)

    def setting(self) -> dict[str, Any]:
        """What must be equal, beside the checkpoint, for bit-equal training."""
        return {
            "seed": self.config.seed,
            "optimizer": self.config.optimizer,
            "batch_size": int(getattr(self.task, "batch_size", 0)),
            "num_batches": self.num_batches,
            "world_size": self.processes.world_size,
            "device": self.processes.device.type,
            "num_threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }

    def save(self, run: RunFolder | None, name: str, scores: Mapping[str, float], *, finished: bool) -> None:
        """Save a checkpoint, let latest.json and best.json name it, and remove those no longer needed.

        Every process calls this; the one with the run folder writes. The others wait for it: torchrun ends all when
        one has ended, and would do so in the middle of a last checkpoint.
        """
        generators = self.processes.gather(rng_state())
        if run is not None:
            self._write(run, name, scores, generators, finished=finished)
        self.processes.wait()

    def _write(
        self,
        run: RunFolder,
        name: str,
        scores: Mapping[str, float],
        generators: list[dict[str, Any]],
        *,
        finished: bool,
    ) -> None:
        progress, task = self.progress, self.task
        record = CheckpointRecord(
            name=name,
            task=task.name,
            step=progress.step,
            epoch=progress.epoch,
            position=progress.position,
            finished=finished,
            seconds=progress.seconds,
            identity=dict(task.identity()),
            metrics=dict(scores),
            best=progress.best,
            versions=software_versions(),
        )
        state = {
            "progress": asdict(progress),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": generators,
            "setting": self.setting(),
        }
        folder = run.checkpoints
        save_checkpoint(folder, record, model=task.model, description=task.describe(), state=state)
        point_to(folder, "latest", name)
        if progress.best is not None and progress.best.checkpoint == name:
            point_to(folder, "best", name)
        prune(folder, self.config.keep_last)

    def _restore(self, path: Path, *, is_branch: bool) -> None:
        """Load a checkpoint into model, optimizer, generators and progress."""
        task = self.task
        check_identity(read_record(path), path, task.name, task.identity())
        _, weights, state = load_checkpoint(path)
        try:
            task.model.load_state_dict(weights)
            self._take_state(state)
            then = dict(state["setting"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"checkpoint {path} does not fit the {task.name} task's model: {reason}"
            ) from error
        self._take_position(then)
        if is_branch:
            self.progress.best, self.progress.sums = None, {}

    def _take_state(self, state: Mapping[str, Any]) -> None:
        progress = dict(state["progress"])
        best = progress.pop("best")
        self.progress = Progress(**progress, best=None if best is None else Best(**best))
        setting, rank, generators = state["setting"], self.processes.rank, state["rng"]
        if setting["optimizer"] == self.config.optimizer:
            load_optimizer_state(self.optimizer, state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if setting["seed"] == self.config.seed and rank < len(generators):
            set_rng_state(generators[rank])
        else:
            seed_everything(self.config.seed, rank=rank, step=self.progress.step)

    def _take_position(self, then: Mapping[str, Any]) -> None:
        """Translate the place in the epoch if batches are of another size, and say what is no longer equal."""
        now, progress = self.setting(), self.progress
        differing = [
            f"{name} was {then.get(name)}, is {now[name]}" for name in now if now[name] != then.get(name)
        ]
        if differing:
            logger.warning("not bit-equal to a run without this change: %s", "; ".join(differing))
        if not progress.position or then["num_batches"] == now["num_batches"]:
            return
        if then["batch_size"] and now["batch_size"]:
            samples = progress.position * then["batch_size"] * then["world_size"]
            progress.position = samples // (now["batch_size"] * now["world_size"])
        else:
            progress.position = progress.position * now["num_batches"] // then["num_batches"]
        if progress.position >= self.num_batches:
            progress.epoch, progress.position = progress.epoch + 1, 0

    def _count_steps(self) -> int:
        """Steps in all: those done and those that the epochs left take, or the limit on steps."""
        config, progress = self.config, self.progress
        if config.epochs == 0:
            return config.max_steps
        left_of_epoch = math.ceil((self.num_batches - progress.position) / config.accumulate)
        epochs_after = config.epochs - progress.epoch - 1
        total = progress.step + max(0, left_of_epoch + epochs_after * self.steps_per_epoch)
        return min(total, config.max_steps) if config.max_steps else total
