"""What a stage hands to the trainer.

A protocol, so that the stages need not import the trainer: any object with these members can be trained,
checkpointed and resumed.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn


class Batch(Protocol):
    """A batch that can be pinned by its loader and moved to a device."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self: ...


B = TypeVar("B", bound=Batch)


class Task(Protocol[B]):
    """One trainable problem: model, batches, loss, evaluation, and what identifies its data.

    A task with phases may also have `learning_rate(epoch) -> float | None`: the rate of an epoch that has one of its
    own, in place of the schedule's.
    """

    name: str
    """"detector", "caption" or "vqa"."""
    best_metric: str
    """The key of `evaluate()`'s result by which the best checkpoint is chosen."""
    higher_is_better: bool
    batch_size: int
    """Samples in a batch, on one process: with it a run goes on at the right sample under another batch size."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        ...

    def identity(self) -> Mapping[str, str]:
        """Fingerprints that a resumed run must share, by name: "model", "vocabulary", "store" or "tables"."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What rebuilds the model for inference, as JSON: goes beside the weights as model.json."""
        ...

    def num_batches(self) -> int:
        """Batches in one epoch, on this rank."""
        ...

    def batches(self, epoch: int, start: int) -> Iterator[B]:
        """The epoch's batches from a position: a pure function of (seed, epoch), whatever the workers."""
        ...

    def batch_ids(self, batch: B) -> list[str]:
        """Ids of the batch's samples, for the message about a non-finite loss."""
        ...

    def loss(self, batch: B, *, step: int, epoch: int) -> tuple[Tensor, Tensor | int, Mapping[str, Tensor]]:
        """The loss summed over the batch's items, the number of items, and detached parts for the log.

        The trainer divides by the number of items over all accumulated batches and all ranks. The parts are means
        as they are to be read; the log shows their mean over batches.
        """
        ...

    def evaluate(self) -> Mapping[str, float]:
        """Scores on the validation data. Leaves the model in training mode as it was."""
        ...
