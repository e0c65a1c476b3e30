"""Two processes under torchrun equal one, with ragged batches and an uneven last one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pipeline.training.processes import Processes, resolve_device
from pipeline.training.records import pointed_to
from pipeline.training.runs import read_metrics
from store_schema.errors import UsageError
from tests.pipeline.training.tiny_task import run_tiny

REPO = Path(__file__).resolve().parents[3]
EXACT = ("dropout=0", "ragged=true", "optimizer=sgd", "epochs=2", "num_samples=37", "log_every=1")


def torchrun(run: Path, seen: Path, *settings: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    subprocess.run(
        [*launcher, "-m", "tests.pipeline.training.tiny_task", str(run), *settings, f"--seen={seen}"],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=250,
    )


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    latest = pointed_to(run / "checkpoints", "latest")
    assert latest is not None
    return safetensors.torch.load_file(latest / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("float64=true", 1e-9), ("float64=false", 1e-4)])
def test_two_processes_equal_one(tmp_path: Path, precision: str, tolerance: float) -> None:
    """37 samples: the last step has 5, which are 3 and 2; each sample is seen once an epoch.

    With accumulation: 5 batches an epoch in steps of 3 and 2.
    """
    settings = (*EXACT, precision)
    run_tiny(tmp_path / "one", *settings, "batch_size=8", "accumulate=3")
    torchrun(tmp_path / "two", tmp_path / "seen", *settings, "batch_size=4", "accumulate=3")
    one, two = final_weights(tmp_path / "one"), final_weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], rtol=0, atol=tolerance) for name in one)
    losses = [read_metrics(tmp_path / name, "train")["loss"].to_numpy() for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=max(tolerance, 1e-9))
    seen = [json.loads((tmp_path / f"seen-{rank}").read_text()) for rank in (0, 1)]
    assert sorted(seen[0] + seen[1]) == sorted([f"sample-{i}" for i in range(37)] * 2)


@pytest.mark.slow
def test_a_process_with_a_batch_less_takes_part_without_counting(tmp_path: Path) -> None:
    """33 samples: the ninth step has one sample, for the first process alone."""
    settings = (*EXACT, "float64=true", "num_samples=33")
    run_tiny(tmp_path / "one", *settings, "batch_size=4")
    torchrun(tmp_path / "two", tmp_path / "seen", *settings, "batch_size=2")
    one, two = final_weights(tmp_path / "one"), final_weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], rtol=0, atol=1e-9) for name in one)


def test_one_process_is_its_own_sum() -> None:
    alone = Processes.join(torch.device("cpu"))
    assert (alone.rank, alone.world_size, alone.is_first) == (0, 1, True)
    assert alone.sum([1.5, 2.0]) == [1.5, 2.0]
    assert (alone.largest(3), alone.from_first("x"), alone.gather("x")) == (3, "x", ["x"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused_with_the_remedy() -> None:
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(UsageError, match=r"sees no CUDA device; use --device cpu or auto"):
        resolve_device("cuda")
