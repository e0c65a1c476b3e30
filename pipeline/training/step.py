"""One optimizer step: losses of its batches, check, gradients, clipping, update.

The gradient is that of the mean over all items of all the step's batches, on all processes: an item counts the
same wherever it lies. Nothing is updated when a loss or gradient is not finite.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.training.optimisation import learning_rate, set_learning_rate
from pipeline.training.state import TrainingState
from pipeline.training.task import B, Task
from store_schema.errors import ButdError


class NonFiniteLossError(ButdError, ArithmeticError):
    """A loss or gradient is NaN or infinite; raised before the optimizer step."""


@dataclass(frozen=True)
class StepBatch(Generic[B]):
    """A batch of a step; one that does not count only keeps this process in step with the others."""

    batch: B
    counts: bool = True


class OptimizerStep(Generic[B]):
    """Takes steps on a training state; made once, after the state is restored."""

    def __init__(self, state: TrainingState[B]) -> None:
        """Compile and wrap the model as the config and the number of processes ask."""
        self.state, self.config, self.processes = state, state.config, state.processes
        if self.config.compile:
            state.task.model.compile()
        loss = _Loss(state.task)
        self.loss: nn.Module = loss
        if self.processes.world_size > 1:
            unused = self.config.ddp_unused_parameters
            self.loss = DistributedDataParallel(loss, find_unused_parameters=unused)

    def __call__(self, batches: list[StepBatch[B]]) -> dict[str, float]:
        """Take a step, move the progress on; return sums for the log.

        Sums: "batches", "loss" and "items" (over all processes), "grad_norm" (before clipping), and the task's
        own under "part.<name>".

        Raises:
            NonFiniteLossError: names step, place in the epoch and the samples.
        """
        state, progress = self.state, self.state.progress
        lr = learning_rate(self.config, progress.step, state.total_steps, state.steps_per_epoch)
        own_lr = state.task.learning_rate(progress.epoch) if hasattr(state.task, "learning_rate") else None
        set_learning_rate(state.optimizer, lr if own_lr is None else own_lr)
        losses, counts, sums = self._backward(batches)
        self._check_losses(batches, losses)
        if len(batches) > 1:
            self._scale_gradients(counts[0] / torch.stack(counts).sum())
        sums["grad_norm"] = self._update(batches)
        loss_sum = sum(float(loss) for loss, batch in zip(losses, batches, strict=True) if batch.counts)
        sums["loss"] = self.processes.sum([loss_sum])[0]
        sums["items"] = float(torch.stack(counts).sum())
        sums["batches"] = float(len(batches))
        progress.step += 1
        progress.position += len(batches)
        return sums

    def _backward(self, batches: list[StepBatch[B]]) -> tuple[list[Tensor], list[Tensor], dict[str, float]]:
        """Add up the gradients of all batches, divided by the first one's number of items.

        The others' numbers are not known yet; `_scale_gradients` corrects for them.

        Returns:
            Each batch's loss (summed over its items, on this process), its number of items on all processes (at
            least 1), and the sums of the task's parts.
        """
        progress, processes = self.state.progress, self.processes
        losses: list[Tensor] = []
        counts: list[Tensor] = []
        sums: dict[str, float] = {}
        for index, step_batch in enumerate(batches):
            batch = step_batch.batch.to(processes.device, non_blocking=True)
            weight = 1.0 if step_batch.counts else 0.0
            with self._syncing(last=index == len(batches) - 1):
                with self._autocast():
                    loss, items, parts = self.loss(batch, step=progress.step, epoch=progress.epoch)
                count = weight * torch.as_tensor(items, dtype=loss.dtype, device=processes.device)
                counts.append(processes.sum_tensor(count).clamp(min=1))
                # DDP takes the mean over the processes: hence times their number.
                loss_share = loss * (weight * processes.world_size) / counts[0]
                self.state.scaler.scale(loss_share).backward()
            losses.append(loss.detach())
            for name, part in parts.items():
                sums[f"part.{name}"] = sums.get(f"part.{name}", 0.0) + float(part)
        return losses, counts, sums

    def _scale_gradients(self, factor: Tensor) -> None:
        for parameter in self.state.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def _update(self, batches: list[StepBatch[B]]) -> float:
        """Check, clip and apply the gradients; return their norm before clipping (0 where float16 overflowed)."""
        config, state = self.config, self.state
        state.scaler.unscale_(state.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in state.parameters if p.grad is not None])
        grad_norm = float(norm)
        if not math.isfinite(grad_norm):
            # An overflow in float16 is no fault: the scaler leaves this step out and takes a smaller scale.
            if not state.scaler.is_enabled() or state.scaler.get_scale() < _SMALLEST_SCALE:
                raise NonFiniteLossError(self._describe("the gradient's norm", grad_norm, batches))
            grad_norm = 0.0
        if config.grad_clip:
            torch.nn.utils.clip_grads_with_norm_(state.parameters, config.grad_clip, norm)
        if config.grad_clip_value:
            torch.nn.utils.clip_grad_value_(state.parameters, config.grad_clip_value)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        return grad_norm

    def _check_losses(self, batches: list[StepBatch[B]], losses: list[Tensor]) -> None:
        for index, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    self._describe("the loss", float(loss), batches[index : index + 1], index)
                )

    def _describe(self, what: str, value: float, batches: list[StepBatch[B]], index: int = 0) -> str:
        progress = self.state.progress
        ids = [sample_id for batch in batches for sample_id in self.state.task.batch_ids(batch.batch)]
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        return (
            f"{what} is {value} at step {progress.step + 1} (epoch {progress.epoch + 1}, batch "
            f"{progress.position + index + 1} of {self.state.num_batches}), with {shown}; no step was taken and the "
            "last checkpoint is as it was: look at these samples, or go on from it with a smaller training.lr or "
            "with training.grad_clip in a new --out"
        )

    def _autocast(self) -> AbstractContextManager[object]:
        if self.config.precision == "float32":
            return nullcontext()
        return torch.autocast(self.processes.device.type, dtype=getattr(torch, self.config.precision))

    def _syncing(self, *, last: bool) -> AbstractContextManager[object]:
        """Exchange gradients only in the last batch of a step."""
        if isinstance(self.loss, DistributedDataParallel) and not last:
            return self.loss.no_sync()
        return nullcontext()


_SMALLEST_SCALE = 1e-4


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
