"""The one training loop, for detector, captioner and VQA alike.

`train` begins a run or goes on with it; `Trainer.run` is the loop. What a task is says task.py; where a run
begins, resume.py; what is on the disk, checkpoint.py and runs.py. On a CPU a run that was stopped or killed
and goes on has, bit for bit, the weights of one that was not.
"""

import contextlib
import logging
import math
import time
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import config_to_dict
from pipeline.training.checkpoint import (
    Best,
    CheckpointRecord,
    load_checkpoint,
    point_to,
    pointed_to,
    prune,
    read_record,
    save_checkpoint,
)
from pipeline.training.config import TrainingConfig
from pipeline.training.initialise import init_weights
from pipeline.training.optimisation import (
    build_optimizer,
    learning_rate,
    load_optimizer_state,
    set_learning_rate,
)
from pipeline.training.processes import Processes, resolve_device
from pipeline.training.progress import ProgressReport, clock
from pipeline.training.randomness import preserved_rng, rng_state, seed_everything, set_rng_state
from pipeline.training.resume import Start, check_identity, choose_start
from pipeline.training.runs import RunFolder, software_versions
from pipeline.training.stop import EvaluationCut, StopKind, StopRequest
from pipeline.training.task import B, Task
from store_schema.errors import ButdError, CheckpointError, ConfigError, UsageError

logger = logging.getLogger(__name__)

Status = Literal["finished", "finished before", "stopped", "interrupted"]

_EXIT_CODES: dict[Status, int] = {"finished": 0, "finished before": 0, "stopped": 75, "interrupted": 130}
_STOP_CODES: dict[StopKind | None, int] = {None: 0, "stopped": 1, "interrupted": 2}
_STOP_KINDS = {code: kind for kind, code in _STOP_CODES.items()}


class NonFiniteLossError(ButdError, ArithmeticError):
    """A loss or gradient is NaN or infinite; raised before the optimizer step."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What came of a call of `train`."""

    status: Status
    best: Path | None
    """The best checkpoint, None before the first evaluation."""
    last: Path
    """The latest checkpoint."""
    steps: int
    """Optimizer steps done in all."""
    seconds: float
    """Spent on training, over all sessions of the run."""

    @property
    def exit_code(self) -> int:
        """For the command line."""
        return _EXIT_CODES[self.status]


@dataclass(kw_only=True)
class Progress:
    """Where a run is; saved with each checkpoint."""

    step: int = 0
    epoch: int = 0
    """Epochs done."""
    position: int = 0
    """Batches consumed of the epoch begun, on each process."""
    seconds: float = 0.0
    best: Best | None = None
    pending: bool = False
    """The run was stopped before it did what is due after this step: evaluation, the epoch's checkpoint."""
    sums: dict[str, float] = field(default_factory=dict)
    """Since the last record of metrics: steps, loss, items, grad_norm and the task's parts, added up."""


def train(
    task: Task[B],
    config: TrainingConfig,
    run_dir: Path,
    *,
    resolved_config: Mapping[str, Any],
    resume: str | Path | None = "auto",
    time_limit_seconds: float | None = None,
    show_bar: bool | None = None,
) -> TrainResult:
    """Train a task in a run folder, from the beginning or from where it is.

    Call `seed_everything(config.seed)` before the task builds its model, so that its weights follow the seed.
    Under torchrun every process calls this.

    Args:
        task: see task.py. An optional attribute `batch_size` (samples in a batch, on a process) lets a run go on at
            the right sample with another batch size or number of processes.
        config: the trainer's knobs.
        run_dir: the run folder; made where it is new.
        resolved_config: all sections (dataclasses or mappings): saved as config.toml, and what the same command
            again is compared with. Should name tables, store and whatever else decides the result.
        resume: "auto", "latest", "best", a checkpoint's name, a path, or None; see `resume.choose_start`.
        time_limit_seconds: counted from this call; the queue's own limit counts too.
        show_bar: a progress bar; None where stderr is a terminal.

    Raises:
        NonFiniteLossError: a loss or gradient is not finite; the last checkpoint is untouched.
        UsageError, CheckpointError: the folder, the checkpoint or the configuration do not fit together.
        ConfigError: `best_metric` is none of what the task's evaluation returns.
        CheckpointWriteError: the disk is full; earlier checkpoints are whole.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    processes = Processes.join(resolve_device(config.device))
    try:
        with (
            StopRequest(time_limit_seconds) as stop,
            RunFolder(run_dir) if processes.is_first else nullcontext() as run,
        ):
            start = choose_start(run, resolved_config, resume) if run is not None else None
            start = processes.from_first(start)
            if (
                start.checkpoint is not None
                and not start.is_branch
                and read_record(start.checkpoint).finished
            ):
                return _finished_before(run_dir, start.checkpoint)
            if run is not None and (start.checkpoint is None or start.is_branch):
                run.write_config(config_to_dict(resolved_config))
            trainer = Trainer(task, config, processes, stop, run)
            trainer.begin(start)
            status = trainer.run_session(show_bar)
    finally:
        processes.leave()
    checkpoints = run_dir / "checkpoints"
    latest = pointed_to(checkpoints, "latest")
    assert latest is not None  # every end of a session saves
    progress = trainer.progress
    return TrainResult(
        status=status,
        best=pointed_to(checkpoints, "best"),
        last=latest,
        steps=progress.step,
        seconds=progress.seconds,
    )


class Trainer(Generic[B]):
    """One session of work on a run. Use `train`, which looks after folder, lock, signals and processes."""

    def __init__(
        self,
        task: Task[B],
        config: TrainingConfig,
        processes: Processes,
        stop: StopRequest,
        run: RunFolder | None,
    ) -> None:
        """Prepare for a beginning; `run` is None on all but the first process."""
        self.task, self.config, self.processes, self.stop, self.run = task, config, processes, stop, run
        self.device = processes.device
        self.progress = Progress()
        self.num_batches = processes.largest(task.num_batches())
        self.total_steps = 0
        self.saved_step = -1
        self.saved_at = time.monotonic()
        self.evaluation_seconds = 0.0

    def begin(self, start: Start) -> None:
        """Seed, initialise or load, and build what the loop needs."""
        config, task = self.config, self.task
        if self.processes.largest(int(task.num_batches() < 1)):
            raise UsageError("there is nothing to train on: an epoch has no batches for one of the processes")
        seed_everything(config.seed, rank=self.processes.rank)
        if start.checkpoint is None and config.init != "default":
            task.model.apply(init_weights(config.init))
        task.model.to(self.device)
        self.optimizer = build_optimizer(task.model.parameters(), config)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        if start.checkpoint is not None:
            self._restore(start)
        self.total_steps = self._count_steps()
        if start.is_branch and self.progress.step >= self.total_steps:
            raise UsageError(
                f"nothing is left to train: {start.checkpoint} has done {self.progress.step} steps of "
                f"{self.total_steps}; raise it with --set training.epochs=... or training.max_steps=..."
            )
        if config.compile:
            task.model.compile()
        loss = _Loss(task)
        self.loss: nn.Module = loss
        if self.processes.world_size > 1:
            self.loss = DistributedDataParallel(loss, find_unused_parameters=config.ddp_unused_parameters)
        if self.run is not None:
            self._describe_session(start)

    def run_session(self, show_bar: bool | None) -> Status:
        """Run the loop; note in the run folder how it ended."""
        progress = self.progress
        self.report = ProgressReport(
            progress.step, self.total_steps, show_bar=show_bar, is_first=self.processes.is_first
        )
        ended: str = "failed"
        try:
            with self.report.shown():
                status = ended = self.run_loop()
        except KeyboardInterrupt:
            ended = "interrupted"
            raise
        finally:
            if self.run is not None:
                self.run.end_session(ended, progress.step)
        if status == "finished":
            best = progress.best
            text = f", best {best.metric} {best.value:.4g} at step {best.step}" if best else ""
            logger.info("finished: %d steps in %s%s", progress.step, clock(progress.seconds), text)
        else:
            logger.info(
                "stopped by %s at step %d/%d, everything saved; the same command again goes on",
                *(self.stop.reason or "another process", progress.step, self.total_steps),
            )
        return status

    def run_loop(self) -> Status:
        """Train until the last step or until asked to stop: batch, loss, check, step, log, evaluate, save."""
        self.task.model.train()
        stopped = self._after_step(at_start=True) if self.progress.pending else None
        while stopped is None and self.progress.step < self.total_steps:
            with contextlib.closing(self._steps_of_epoch()) as steps:
                for batches in steps:
                    started = time.monotonic()
                    self._train_step(batches)
                    self._log_step(time.monotonic() - started)
                    stopped = self._after_step()
                    if stopped is not None or self.progress.step >= self.total_steps:
                        break
        return stopped or "finished"

    def _steps_of_epoch(self) -> Generator[list[tuple[B, bool]], None, None]:
        """The rest of the epoch, in groups of `accumulate` batches; False marks a repeat that must not count.

        A process whose share has a batch less than another's repeats its last one with weight zero, so that all
        take part in every exchange of gradients.
        """
        progress, own = self.progress, self.task.num_batches()
        epoch = progress.epoch
        batches = self.task.batches(epoch, min(progress.position, own - 1))
        with contextlib.closing(batches) if isinstance(batches, Generator) else nullcontext():
            last: B | None = None
            while progress.epoch == epoch:
                group: list[tuple[B, bool]] = []
                for position in range(
                    progress.position, min(progress.position + self.config.accumulate, self.num_batches)
                ):
                    if position < own or last is None:
                        last = next(batches, None)
                        if last is None:
                            raise ButdError(
                                f"the {self.task.name} task announced {own} batches, but epoch {epoch + 1} "
                                f"ended after {position}"
                            )
                    group.append((last, position < own))
                yield group

    def _train_step(self, batches: list[tuple[B, bool]]) -> None:
        """One optimizer step. The gradient is that of the mean over all items of all batches and processes."""
        progress, world_size = self.progress, self.processes.world_size
        lr = learning_rate(self.config, progress.step, self.total_steps, self._steps_per_epoch())
        set_learning_rate(self.optimizer, lr)
        losses: list[Tensor] = []
        counts: list[Tensor] = []
        for index, (batch, counts_in) in enumerate(batches):
            batch = batch.to(self.device, non_blocking=True)
            with self._syncing(last=index == len(batches) - 1):
                with self._autocast():
                    loss, items, parts = self.loss(batch, step=progress.step, epoch=progress.epoch)
                weight = 1.0 if counts_in else 0.0
                count = torch.as_tensor(items, dtype=loss.dtype, device=self.device).clone() * weight
                count = self.processes.sum_tensor(count)
                # All batches of the step are divided by the first one's count here, and corrected below: the
                # others' counts are not known yet. DDP takes the mean over processes, hence the world size.
                counts.append(count.clamp(min=1))
                self.scaler.scale(loss * (weight * world_size) / counts[0]).backward()
            losses.append(loss.detach())
            self._add_up({f"part.{name}": part for name, part in parts.items()})
        self._check_losses(batches, losses)
        if len(batches) > 1:
            factor = counts[0] / torch.stack(counts).sum()
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        grad_norm = self._apply_gradients(batches)
        loss_sum = sum(float(loss) for loss, (_, counts_in) in zip(losses, batches, strict=True) if counts_in)
        self._add_up(
            {
                "steps": 1,
                "batches": len(batches),
                "grad_norm": grad_norm,
                "loss": self.processes.sum([loss_sum])[0],
                "items": float(torch.stack(counts).sum()),
            }
        )
        progress.step += 1
        progress.position += len(batches)
        self.lr = lr

    def _apply_gradients(self, batches: list[tuple[B, bool]]) -> float:
        """Check, clip and apply the gradients; return their norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        grad_norm = float(norm)
        if not math.isfinite(grad_norm) and not self.scaler.is_enabled():
            raise NonFiniteLossError(self._describe_non_finite("the gradient's norm", grad_norm, batches))
        if self.config.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.grad_clip, norm)
        if self.config.grad_clip_value:
            torch.nn.utils.clip_grad_value_(self.parameters, self.config.grad_clip_value)
        self.scaler.step(self.optimizer)  # with float16: leaves out steps whose gradients overflowed
        self.scaler.update()
        self.optimizer.zero_grad()
        return grad_norm if math.isfinite(grad_norm) else 0.0

    def _log_step(self, seconds: float) -> None:
        """Count a step's time and, every `log_every` steps, write the means since the last record."""
        progress, sums = self.progress, self.progress.sums
        progress.seconds += seconds
        self.stop.step_seconds = max(seconds, 0.9 * self.stop.step_seconds)
        self._add_up({"seconds": seconds})
        self.report.step_done()
        if progress.step % self.config.log_every and progress.step != self.total_steps:
            return
        means = {
            name.removeprefix("part."): value / sums["batches"]
            for name, value in sums.items()
            if name.startswith("part.")
        }
        loss, rate = sums["loss"] / sums["items"], sums["steps"] / max(sums["seconds"], 1e-9)
        if self.run is not None:
            record = {
                "kind": "train",
                "step": progress.step,
                "epoch": progress.epoch + 1,
                "loss": loss,
                "lr": self.lr,
                "grad_norm": sums["grad_norm"] / sums["steps"],
                **means,
                "steps_per_second": round(rate, 3),
                "seconds": round(progress.seconds, 3),
            }
            self.run.write_metrics(record, tensorboard=self.config.tensorboard)
        self.report.numbers(progress.step, progress.epoch + 1, loss, self.lr, rate)
        progress.sums = {}

    def _after_step(self, *, at_start: bool = False) -> StopKind | None:
        """Evaluate and save what is due after this step; or, when asked to stop, save and say so."""
        config, progress = self.config, self.progress
        progress.pending = False
        if progress.position >= self.num_batches:
            progress.epoch, progress.position = progress.epoch + 1, 0
        epoch_ended, finished = progress.position == 0, progress.step >= self.total_steps
        evaluation_due = (
            finished
            or (config.eval_every > 0 and progress.step % config.eval_every == 0)
            or (
                epoch_ended
                and config.eval_every_epochs > 0
                and progress.epoch % config.eval_every_epochs == 0
            )
        )
        expected = self.evaluation_seconds if evaluation_due and not at_start else 0.0
        stopped = None if at_start else self._asked_to_stop(expected)
        scores: dict[str, float] | None = {}
        if stopped is None and evaluation_due:
            scores = self._evaluate()
            if scores is None:  # cut short
                stopped = self._asked_to_stop()
        if stopped is not None:
            progress.pending = True
            self._save(f"step-{progress.step:08}")
            if at_start and self.stop.reason == "the time limit":
                raise ButdError(
                    "the time limit is too short for one evaluation: nothing more can be done in it"
                )
            return stopped
        is_best = self._note_best(scores or {}, epoch_ended)
        if epoch_ended:
            self._save(f"epoch-{progress.epoch:04}", scores or {}, finished=finished)
        elif finished or is_best or self._save_due():
            self._save(f"step-{progress.step:08}", scores or {}, finished=finished)
        return None

    def _asked_to_stop(self, next_seconds: float = 0.0) -> StopKind | None:
        """Whether any process is asked to stop, or has no time left for `next_seconds` more."""
        return _STOP_KINDS[self.processes.largest(_STOP_CODES[self.stop.requested(next_seconds)])]

    def _save_due(self) -> bool:
        config, progress = self.config, self.progress
        if progress.step == self.saved_step:
            return False
        if config.save_every_steps and progress.step % config.save_every_steps == 0:
            return True
        if not config.save_every_minutes:
            return False
        return bool(
            self.processes.from_first(time.monotonic() - self.saved_at >= config.save_every_minutes * 60)
        )

    def _evaluate(self) -> dict[str, float] | None:
        """Scores from the first process, for all; None when a request to stop cut it short."""
        started = time.monotonic()
        scores: dict[str, float] | None = None
        if self.processes.is_first:
            # The generators are left as they were: how often one evaluates does not change the weights.
            with preserved_rng(), contextlib.suppress(EvaluationCut), self.stop.cutting_evaluation():
                scores = {name: float(value) for name, value in self.task.evaluate().items()}
        scores = self.processes.from_first(scores)
        self.evaluation_seconds = time.monotonic() - started
        if scores is None:
            return None
        if self.task.best_metric not in scores:
            raise ConfigError(
                f"the best checkpoint is to be chosen by {self.task.best_metric!r}, which the {self.task.name} task's "
                f"evaluation does not return; known are {', '.join(scores) or 'none'}"
            )
        return scores

    def _note_best(self, scores: Mapping[str, float], epoch_ended: bool) -> bool:
        """Log an evaluation's scores; whether they are the best so far, which is then noted."""
        progress, metric = self.progress, self.task.best_metric
        if not scores:
            return False
        value, best = scores[metric], progress.best
        sign = 1 if self.task.higher_is_better else -1
        is_best = not math.isnan(value) and (best is None or sign * value > sign * best.value)
        if is_best:
            name = f"epoch-{progress.epoch:04}" if epoch_ended else f"step-{progress.step:08}"
            progress.best = Best(checkpoint=name, metric=metric, value=value, step=progress.step)
        if self.run is not None:
            epoch = progress.epoch + (not epoch_ended)
            shown = ", ".join(f"{name} {score:.4g}" for name, score in scores.items())
            seconds = self.evaluation_seconds
            logger.info(
                "step %d (epoch %d): %s%s, evaluated in %.1f s",
                *(progress.step, epoch, shown, " (best so far)" if is_best else "", seconds),
            )
            record = {
                "kind": "eval",
                "step": progress.step,
                "epoch": epoch,
                **scores,
                "seconds": round(seconds, 3),
            }
            self.run.write_metrics(record, tensorboard=self.config.tensorboard)
        return is_best

    def _save(self, name: str, scores: Mapping[str, float] | None = None, *, finished: bool = False) -> None:
        """Save a checkpoint, let latest.json and best.json name it, and remove those no longer needed."""
        started, progress, task = time.monotonic(), self.progress, self.task
        generators = self.processes.gather(rng_state())
        if self.run is not None:
            record = CheckpointRecord(
                name=name,
                task=task.name,
                step=progress.step,
                epoch=progress.epoch,
                position=progress.position,
                finished=finished,
                seconds=progress.seconds,
                identity=dict(task.identity()),
                metrics=dict(scores or {}),
                best=progress.best,
                versions=software_versions(),
            )
            state = {
                "progress": asdict(progress),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "rng": generators,
                "setting": self._setting(),
            }
            folder = self.run.checkpoints
            save_checkpoint(folder, record, model=task.model, description=task.describe(), state=state)
            point_to(folder, "latest", name)
            if progress.best is not None and progress.best.checkpoint == name:
                point_to(folder, "best", name)
            prune(folder, self.config.keep_last)
        self.saved_step, self.saved_at = progress.step, time.monotonic()
        self.stop.save_seconds = max(self.stop.save_seconds, self.saved_at - started)

    def _restore(self, start: Start) -> None:
        """Load a checkpoint into model, optimizer, generators and progress."""
        path, config, task = start.checkpoint, self.config, self.task
        assert path is not None
        check_identity(read_record(path), path, task.name, task.identity())
        _, weights, state = load_checkpoint(path)
        try:
            task.model.load_state_dict(weights)
            progress = dict(state["progress"])
            best = Best(**progress.pop("best")) if progress["best"] else None
            self.progress = Progress(**progress | {"best": best})
            setting = dict(state["setting"])
            if setting["optimizer"] == config.optimizer:
                load_optimizer_state(self.optimizer, state["optimizer"])
            if self.scaler.is_enabled() and state["scaler"]:
                self.scaler.load_state_dict(state["scaler"])
            generators = state["rng"]
            if setting["seed"] == config.seed and self.processes.rank < len(generators):
                set_rng_state(generators[self.processes.rank])
            else:
                seed_everything(config.seed, rank=self.processes.rank, step=self.progress.step)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"checkpoint {path} does not fit the {task.name} task's model: {reason}"
            ) from error
        self._take_position(setting)
        if start.is_branch:
            self.progress.best, self.progress.sums = None, {}
        elif self.run is not None:
            self._return_to(path)

    def _return_to(self, path: Path) -> None:
        """Let the run folder agree with the checkpoint that the run goes on from."""
        assert self.run is not None
        folder, best = self.run.checkpoints, self.progress.best
        point_to(folder, "latest", path.name)
        if best is not None and not (folder / best.checkpoint).is_dir():
            logger.warning(
                "the best checkpoint then, %s, was not kept; the best is chosen anew", best.checkpoint
            )
            best = self.progress.best = None
        point_to(folder, "best", None if best is None else best.checkpoint)
        self.run.forget_metrics_after(self.progress.step)
        logger.info(
            "going on with %s from %s: step %d, epoch %d",
            *(self.run.path, path.name, self.progress.step, self.progress.epoch + 1),
        )

    def _take_position(self, then: Mapping[str, Any]) -> None:
        """Translate the place in the epoch if batches are of another size, and say what is no longer equal."""
        now, progress = self._setting(), self.progress
        differing = [f"{name} {then[name]}, now {now[name]}" for name in now if now[name] != then[name]]
        if not differing:
            return
        logger.warning("not bit-equal to an undisturbed run: %s", "; ".join(differing))
        if progress.position and then["num_batches"] != now["num_batches"]:
            if then["batch_size"] and now["batch_size"]:
                samples = progress.position * then["batch_size"] * then["world_size"]
                progress.position = samples // (now["batch_size"] * now["world_size"])
            else:
                progress.position = progress.position * now["num_batches"] // then["num_batches"]
            progress.position = min(progress.position, self.num_batches - 1)

    def _setting(self) -> dict[str, Any]:
        """What must be equal, beside the checkpoint, for bit-equal training."""
        return {
            "seed": self.config.seed,
            "optimizer": self.config.optimizer,
            "batch_size": int(getattr(self.task, "batch_size", 0)),
            "num_batches": self.num_batches,
            "world_size": self.processes.world_size,
            "device": self.device.type,
            "num_threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }

    def _describe_session(self, start: Start) -> None:
        """Note in run.json what this run is and on what it runs."""
        assert self.run is not None
        if start.checkpoint is None or start.is_branch:
            self.run.forget_metrics_after(-1)
        facts = {
            "task": self.task.name,
            "identity": dict(self.task.identity()),
            "best_metric": self.task.best_metric,
            "higher_is_better": self.task.higher_is_better,
            "total_steps": self.total_steps,
        }
        if start.parent is not None:
            facts["parent"] = start.parent
            changes = ", ".join(
                f"{key} {old} to {new}" for key, (old, new) in start.parent["changes"].items()
            )
            logger.info(
                "branching from %s at step %d: %s",
                start.checkpoint,
                self.progress.step,
                changes or "no changes",
            )
        self.run.begin_session(
            facts, {"from_step": self.progress.step, **self._setting(), "versions": software_versions()}
        )

    def _steps_per_epoch(self) -> int:
        return math.ceil(self.num_batches / self.config.accumulate)

    def _count_steps(self) -> int:
        """Steps in all: those done and those that the epochs left take, or the limit on steps."""
        config, progress = self.config, self.progress
        if config.epochs == 0:
            return config.max_steps
        left_of_epoch = math.ceil((self.num_batches - progress.position) / config.accumulate)
        epochs_after = config.epochs - progress.epoch - 1
        total = progress.step + max(0, left_of_epoch + epochs_after * self._steps_per_epoch())
        return min(total, config.max_steps) if config.max_steps else total

    def _add_up(self, values: Mapping[str, Tensor | float]) -> None:
        sums = self.progress.sums
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(value)

    def _check_losses(self, batches: list[tuple[B, bool]], losses: list[Tensor]) -> None:
        for index, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    self._describe_non_finite("the loss", float(loss), batches[index : index + 1])
                )

    def _describe_non_finite(self, what: str, value: float, batches: list[tuple[B, bool]]) -> str:
        progress = self.progress
        ids = [sample_id for batch, _ in batches for sample_id in self.task.batch_ids(batch)]
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        return (
            f"{what} is {value} at step {progress.step + 1} (epoch {progress.epoch + 1}, from batch "
            f"{progress.position + 1}), with {shown}; no step was taken and the last checkpoint is as it was: "
            "look at these samples, or go on with a smaller training.lr or with training.grad_clip in a new --out"
        )

    def _autocast(self) -> AbstractContextManager[object]:
        match self.config.precision:
            case "float32":
                return nullcontext()
            case precision:
                return torch.autocast(self.device.type, dtype=getattr(torch, precision))

    def _syncing(self, *, last: bool) -> AbstractContextManager[object]:
        """Exchange gradients only in the last batch of a step."""
        if isinstance(self.loss, DistributedDataParallel) and not last:
            return self.loss.no_sync()
        return nullcontext()


class _Loss(nn.Module):
    """A task's loss as a module, so that DDP sees the one forward that gives all gradients."""

    def __init__(self, task: Task[Any]) -> None:
        super().__init__()
        self.model = task.model
        self._task = task

    def forward(
        self,
        batch: Any,  # noqa: ANN401  (a task's own class)
        *,
        step: int,
        epoch: int,
    ) -> tuple[Tensor, Tensor | int, Mapping[str, Tensor]]:
        return self._task.loss(batch, step=step, epoch=epoch)


def _finished_before(run_dir: Path, checkpoint: Path) -> TrainResult:
    record = read_record(checkpoint)
    logger.info("%s is finished already, after %d steps; nothing was done", run_dir, record.step)
    return TrainResult(
        status="finished before",
        best=pointed_to(checkpoint.parent, "best"),
        last=checkpoint,
        steps=record.step,
        seconds=record.seconds,
    )
