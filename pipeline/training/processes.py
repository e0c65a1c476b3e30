"""Several processes under torchrun: who am I, sums over all of them, the model wrapped in PyTorch's DDP.

With one process everything here is the identity and no process group is made.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from store_schema.errors import UsageError

_EVALUATION_TIMEOUT = timedelta(hours=6)
"""The others wait so long while rank 0 evaluates."""


def rank_and_world_size() -> tuple[int, int]:
    """This process's place and how many there are, as torchrun says in the environment; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def resolve_device(name: str) -> torch.device:
    """The device meant by auto, cpu, cuda or cuda:N; under torchrun cuda is this process's own.

    Raises:
        UsageError: it is none of these, or there is no such CUDA device.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UsageError(
            f"--device {name}: torch {torch.__version__} sees no CUDA device; use --device cpu or auto"
        )
    index = int(name.partition(":")[2] or os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise UsageError(
            f"--device cuda:{index}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0 on"
        )
    return torch.device("cuda", index)


@dataclass(frozen=True)
class Processes:
    """The group that trains one model together."""

    rank: int
    world_size: int
    device: torch.device

    @classmethod
    def join(cls, device: torch.device) -> "Processes":
        """Join the group that torchrun started (NCCL on CUDA, gloo on the CPU); alone without torchrun."""
        rank, world_size = rank_and_world_size()
        if world_size > 1 and not dist.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=_EVALUATION_TIMEOUT)
        return cls(rank, world_size, device)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def sum_tensor(self, value: Tensor) -> Tensor:
        """A tensor summed over all processes, in place; not waited for on CUDA."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def largest(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.world_size == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest.item())

    def from_first(self, value: Any) -> Any:  # noqa: ANN401
        """Rank 0's value, on every process."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world_size > 1:
            dist.barrier()

    def leave(self) -> None:
        """Leave the group, after the last collective call."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401
        """All processes' values, in the order of ranks, on every process."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values
