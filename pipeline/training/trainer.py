"""The one training loop, for detector, captioner and VQA alike.

`train` begins a run or goes on with it; `Trainer.run_loop` is the loop. What a task is says task.py; where a run
begins, resume.py; what its folder then says, session.py; what a checkpoint holds, state.py; what a step does, step.py.
"""

import contextlib
import errno
import logging
import math
import time
from collections.abc import Generator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal

import torch

from pipeline.training.config import TrainingConfig
from pipeline.training.processes import Processes, resolve_device
from pipeline.training.progress import ProgressReport, clock
from pipeline.training.randomness import preserved_rng
from pipeline.training.records import Best, pointed_to, read_record
from pipeline.training.resume import choose_start
from pipeline.training.runs import RunFolder
from pipeline.training.session import describe_session
from pipeline.training.state import TrainingState
from pipeline.training.step import OptimizerStep, StepBatch
from pipeline.training.stop import EvaluationCut, StopKind, StopRequest
from pipeline.training.task import B, Task
from store_schema.errors import ButdError, ConfigError

logger = logging.getLogger(__name__)

Status = Literal["finished", "finished before", "stopped", "interrupted"]

_EXIT_CODES: dict[Status, int] = {"finished": 0, "finished before": 0, "stopped": 75, "interrupted": 130}
_STOP_CODES: dict[StopKind | None, int] = {None: 0, "stopped": 1, "interrupted": 2}
_STOP_KINDS = {code: kind for kind, code in _STOP_CODES.items()}


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
            _full_disk_explained(run_dir),
        ):
            start = choose_start(run, resolved_config, resume) if run is not None else None
            start = processes.from_first(start)
            assert start is not None
            if (
                start.checkpoint is not None
                and not start.is_branch
                and read_record(start.checkpoint).finished
            ):
                return _finished_before(run_dir, start.checkpoint)
            state = TrainingState(task, config, processes, start)
            if run is not None:
                describe_session(run, state, start, resolved_config)
            status = Trainer(state, stop, run, show_bar=show_bar).run_session()
    finally:
        processes.leave()
    latest = pointed_to(run_dir / "checkpoints", "latest")
    assert latest is not None  # every end of a session saves
    return TrainResult(
        status=status,
        best=pointed_to(run_dir / "checkpoints", "best"),
        last=latest,
        steps=state.progress.step,
        seconds=state.progress.seconds,
    )


class Trainer(Generic[B]):
    """One session of work on a run. Use `train`, which looks after folder, lock, signals and processes."""

    def __init__(
        self, state: TrainingState[B], stop: StopRequest, run: RunFolder | None, *, show_bar: bool | None
    ) -> None:
        """`run` is None on all but the first process."""
        self.state, self.task, self.config, self.progress = state, state.task, state.config, state.progress
        self.processes, self.stop, self.run = state.processes, stop, run
        self.take_step = OptimizerStep(state)
        self.report = ProgressReport(
            self.progress.step, state.total_steps, show_bar=show_bar, is_first=self.processes.is_first
        )
        self.saved_step, self.saved_at = -1, time.monotonic()
        self.evaluation_seconds = 0.0

    def run_session(self) -> Status:
        """Run the loop; note in the run folder how it ended."""
        progress = self.progress
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
                *(self.stop.reason or "another process", progress.step, self.state.total_steps),
            )
        return status

    def run_loop(self) -> Status:
        """Train until the last step or until asked to stop: batches, step, log; evaluate, save."""
        self.task.model.train()
        stopped = self._after_step(at_start=True) if self.progress.pending else None
        while stopped is None and self.progress.step < self.state.total_steps:
            with contextlib.closing(self._steps_of_epoch()) as steps:
                for batches in steps:
                    started = time.monotonic()
                    self._log(self.take_step(batches), time.monotonic() - started)
                    stopped = self._after_step()
                    if stopped is not None or self.progress.step >= self.state.total_steps:
                        break
        return stopped or "finished"

    def _steps_of_epoch(self) -> Generator[list[StepBatch[B]], None, None]:
        """The batches of each step, to the end of the epoch.

        A process whose share has a batch less than another's repeats its last one without counting it, so that
        all take part in every exchange of gradients.
        """
        progress, own, num_batches = self.progress, self.task.num_batches(), self.state.num_batches
        epoch = progress.epoch
        batches = self.task.batches(epoch, min(progress.position, own - 1))
        with contextlib.closing(batches) if isinstance(batches, Generator) else nullcontext():
            batch: B | None = None
            while progress.epoch == epoch:
                end = min(progress.position + self.config.accumulate, num_batches)
                step_batches = []
                for position in range(progress.position, end):
                    if position < own or batch is None:
                        batch = next(batches, None)
                    if batch is None:
                        raise ButdError(
                            f"the {self.task.name} task announced {own} batches, but epoch {epoch + 1} ended "
                            f"after {position}"
                        )
                    step_batches.append(StepBatch(batch, counts=position < own))
                yield step_batches

    def _log(self, step_sums: Mapping[str, float], seconds: float) -> None:
        """Add up a step's numbers; every `log_every` steps write their means since the last record."""
        progress, sums = self.progress, self.progress.sums
        progress.seconds += seconds
        self.stop.step_seconds = max(seconds, 0.9 * self.stop.step_seconds)
        for name, value in {**step_sums, "steps": 1.0, "step_seconds": seconds}.items():
            sums[name] = sums.get(name, 0.0) + value
        self.report.step_done()
        if progress.step % self.config.log_every and progress.step != self.state.total_steps:
            return
        lr, loss = self.state.optimizer.param_groups[0]["lr"], sums["loss"] / sums["items"]
        steps_per_second = sums["steps"] / max(sums["step_seconds"], 1e-9)
        parts = {
            name[5:]: value / sums["batches"] for name, value in sums.items() if name.startswith("part.")
        }
        if self.run is not None:
            record = {
                "kind": "train",
                "step": progress.step,
                "epoch": progress.epoch + 1,
                "loss": loss,
                "lr": lr,
                "grad_norm": sums["grad_norm"] / sums["steps"],
                **parts,
                "steps_per_second": round(steps_per_second, 3),
                "seconds": round(progress.seconds, 3),
            }
            self.run.write_metrics(record, tensorboard=self.config.tensorboard)
        self.report.numbers(progress.step, progress.epoch + 1, loss, lr, steps_per_second)
        sums.clear()

    def _after_step(self, *, at_start: bool = False) -> StopKind | None:
        """Evaluate and save what is due after this step; or, when asked to stop, save and say so.

        At the start of a session it does what the one before was stopped from doing.
        """
        progress = self.progress
        progress.pending = False
        if progress.position >= self.state.num_batches:
            progress.epoch, progress.position = progress.epoch + 1, 0
        epoch_ended, finished = progress.position == 0, progress.step >= self.state.total_steps
        scores: dict[str, float] | None = {}
        evaluation_due = self._evaluation_due(epoch_ended=epoch_ended, finished=finished)
        expected_seconds = self.evaluation_seconds if evaluation_due else 0.0
        stopped = None if at_start else self._asked_to_stop(expected_seconds)
        if stopped is None and evaluation_due:
            scores = self._evaluate()
            if scores is None:  # cut short
                stopped = self._asked_to_stop()
        if stopped is not None:
            progress.pending = True
            self._save(f"step-{progress.step:08}", {})
            if at_start and self.stop.reason == "the time limit":
                raise ButdError(
                    "the time limit is too short for a single evaluation; give more, or evaluate less"
                )
            return stopped
        name = f"epoch-{progress.epoch:04}" if epoch_ended else f"step-{progress.step:08}"
        is_best = self._note_best(name, scores) if scores else False
        if epoch_ended or finished or is_best or self._save_due():
            self._save(name, scores or {}, finished=finished)
        return None

    def _asked_to_stop(self, next_seconds: float = 0.0) -> StopKind | None:
        """Whether any process is asked to stop, or has no time left for `next_seconds` more."""
        return _STOP_KINDS[self.processes.largest(_STOP_CODES[self.stop.requested(next_seconds)])]

    def _evaluation_due(self, *, epoch_ended: bool, finished: bool) -> bool:
        config, progress = self.config, self.progress
        if finished or (config.eval_every and progress.step % config.eval_every == 0):
            return True
        return epoch_ended and config.eval_every_epochs > 0 and progress.epoch % config.eval_every_epochs == 0

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
        if scores is not None and self.task.best_metric not in scores:
            raise ConfigError(
                f"the best checkpoint is to be chosen by {self.task.best_metric!r}, which the {self.task.name} "
                f"task's evaluation does not return; known are {', '.join(scores) or 'none'}"
            )
        return scores

    def _note_best(self, checkpoint: str, scores: Mapping[str, float]) -> bool:
        """Log an evaluation's scores; whether they are the best so far, which is then noted."""
        progress, metric = self.progress, self.task.best_metric
        value, best = scores[metric], progress.best
        sign = 1 if self.task.higher_is_better else -1
        is_best = not math.isnan(value) and (best is None or sign * value > sign * best.value)
        if is_best:
            progress.best = Best(checkpoint=checkpoint, metric=metric, value=value, step=progress.step)
        if self.run is not None:
            epoch = progress.epoch + (progress.position > 0)
            seconds = round(self.evaluation_seconds, 3)
            logger.info(
                "step %d (epoch %d): %s%s, evaluated in %.1f s",
                progress.step,
                epoch,
                ", ".join(f"{name} {score:.4g}" for name, score in scores.items()),
                " (best so far)" if is_best else "",
                seconds,
            )
            record = {"kind": "eval", "step": progress.step, "epoch": epoch, **scores, "seconds": seconds}
            self.run.write_metrics(record, tensorboard=self.config.tensorboard)
        return is_best

    def _save(self, name: str, scores: Mapping[str, float], *, finished: bool = False) -> None:
        """Save, and remember how long it takes: so much time is kept free before a time limit."""
        started = time.monotonic()
        self.state.save(self.run, name, scores, finished=finished)
        self.saved_step, self.saved_at = self.progress.step, time.monotonic()
        self.stop.save_seconds = max(self.stop.save_seconds, self.saved_at - started)


@contextlib.contextmanager
def _full_disk_explained(run_dir: Path) -> Generator[None, None, None]:
    """Turn a failed write of anything but a checkpoint (which says so itself) into one line."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ButdError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise ButdError(
            f"cannot write in {run_dir}: {error.strerror}; its checkpoints are whole: make room and run the same "
            "command again"
        ) from error


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
