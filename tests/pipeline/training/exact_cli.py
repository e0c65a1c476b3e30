"""The command line for tests of several processes: models in float64 on demand, and who saw which sample.

`torchrun -m tests.pipeline.training.exact_cli RUNS` trains one after the other what the JSON file RUNS lists:
[{"arguments": [...], "float64": bool, "seen": path}]. Each process writes `<seen>-<rank>`: for every batch its ids
and its number of items.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.cli import main
from pipeline.training import trainer

TRAIN = trainer.train


def in_float64(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Give a layer its inputs in its own precision: boxes and features come in less."""

    def convert(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(map(convert, given)), {name: convert(value) for name, value in named.items()}


def run(arguments: list[str], *, float64: bool, seen: str) -> int:
    """Be `butd ARGUMENTS`, with the trainer's task changed on its way in."""
    batches: list[tuple[list[str], int]] = []

    def train(task: Any, *others: Any, **keywords: Any) -> trainer.TrainResult:
        if float64:
            task.model.double()
            for module in task.model.modules():
                module.register_forward_pre_hook(in_float64, with_kwargs=True)
            task.model.region_input.register_forward_hook(lambda module, given, output: output.double())
        loss = task.loss

        def watched(batch: Any, **place: Any) -> tuple[Tensor, int, Mapping[str, Tensor]]:
            total, items, parts = loss(batch, **place)
            batches.append((task.batch_ids(batch), int(items)))
            return total, items, parts

        task.loss = watched
        return TRAIN(task, *others, **keywords)

    trainer.train = train
    torch.set_default_dtype(torch.float64 if float64 else torch.float32)
    try:
        code = main(arguments)
    finally:
        torch.set_default_dtype(torch.float32)
        trainer.train = TRAIN
    Path(f"{seen}-{os.environ.get('RANK', '0')}").write_text(json.dumps(batches))
    return code


if __name__ == "__main__":
    # Each run makes a process group of its own, at a port of its own.
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    for asked in json.loads(Path(sys.argv[1]).read_text()):
        os.environ["MASTER_PORT"] = str(asked.pop("port"))
        if code := run(**asked):
            sys.exit(code)
