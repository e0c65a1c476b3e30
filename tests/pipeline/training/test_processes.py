"""Two processes under torchrun equal one: a tiny task, captioner and VQA; ragged batches, an uneven last one."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pipeline.training.processes import Processes, resolve_device
from pipeline.training.records import pointed_to, read_record
from pipeline.training.runs import read_metrics
from store_schema.errors import UsageError
from store_schema.tables import read_table, write_table
from tests.pipeline.conftest import CAPTION, VQA, World
from tests.pipeline.training import exact_cli
from tests.pipeline.training.test_trainer import run_with_cut
from tests.pipeline.training.tiny_task import run_tiny, sections_and_task

REPO = Path(__file__).resolve().parents[3]
EXACT = ("dropout=0", "ragged=true", "optimizer=sgd", "epochs=2", "num_samples=37", "log_every=1")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun(*words: str) -> str:
    """Run a module in two processes; give what they log."""
    launcher = ["torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", *words],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def torchrun_tiny(run: Path, seen: Path, *settings: str) -> str:
    return torchrun("tests.pipeline.training.tiny_task", str(run), *settings, f"--seen={seen}")


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
    torchrun_tiny(tmp_path / "two", tmp_path / "seen", *settings, "batch_size=4", "accumulate=3")
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
    torchrun_tiny(tmp_path / "two", tmp_path / "seen", *settings, "batch_size=2")
    one, two = final_weights(tmp_path / "one"), final_weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], rtol=0, atol=1e-9) for name in one)


@pytest.mark.slow
def test_no_process_ends_before_the_last_checkpoint_is_saved(tmp_path: Path) -> None:
    """torchrun would end the one that saves, too. Its disk is slow here."""
    torchrun_tiny(tmp_path / "run", tmp_path / "seen", "epochs=1", "save_seconds=2")
    latest = pointed_to(tmp_path / "run" / "checkpoints", "latest")
    assert latest is not None
    assert read_record(latest).finished


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_at_the_right_sample(tmp_path: Path) -> None:
    """One process, killed after 2 batches of 8; then two processes, whose steps are 16 samples."""
    settings = ("batch_size=8", "epochs=1", "save_every_steps=2")
    run_with_cut(tmp_path / "run", 2, *settings)
    log = torchrun_tiny(tmp_path / "run", tmp_path / "seen", *settings)
    assert (
        "not bit-equal to a run without this change: num_batches was 5, is 3; world_size was 1, is 2" in log
    )
    seen = [json.loads((tmp_path / f"seen-{rank}").read_text()) for rank in (0, 1)]
    _, task = sections_and_task(settings)
    order = [f"sample-{i}" for indices in task.order(0) for i in indices]
    assert sorted(seen[0] + seen[1]) == sorted(order[16:])


def data_with_unequal_captions(world: World, tables: Path) -> Path:
    """The world's tables, where every other picture's captions have one word and the others' have eighteen."""
    shutil.copytree(world.scenes, tables, ignore=shutil.ignore_patterns("images"))
    captions = read_table(tables, "captions")
    images = sorted(set(captions["image_id"]))
    long = {image_id for number, image_id in enumerate(images) if number % 2}
    captions["text"] = ["a red cup " * 6 if image_id in long else "cup" for image_id in captions["image_id"]]
    write_table(tables, "captions", captions)
    return tables


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("model", ["caption", "vqa"])
def test_two_processes_train_a_real_model_as_one_does(world: World, tmp_path: Path, model: str) -> None:
    """An epoch without dropout: parameters to 1e-9 in float64, losses to 1e-4 in float32, each sample once."""
    tables = data_with_unequal_captions(world, tmp_path / "tables")
    common = [
        "train", model, "--tables", str(tables), "--store", str(world.regions), "--num-workers", "1",
        *(word for setting in (*(CAPTION if model == "caption" else VQA), "training.log_every=1")
          for word in ("--set", setting)),
    ]  # fmt: skip
    batch_size = {"caption": 10, "vqa": 24}[model]  # neither divides the number of samples, 24 and 183

    def asked(precision: str, processes: int) -> dict[str, Any]:
        name = f"{precision}-{processes}"
        size = ["--set", f"data.batch_size={batch_size // processes}"]
        return {
            "arguments": [*common, "--out", str(tmp_path / name), *size],
            "float64": precision == "float64",
            "seen": str(tmp_path / f"seen-{name}"),
        }

    precisions = ("float64", "float32")
    for precision in precisions:
        assert exact_cli.run(**asked(precision, 1)) == 0
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps([asked(precision, 2) | {"port": free_port()} for precision in precisions]))
    torchrun("tests.pipeline.training.exact_cli", str(plan))

    one, two = final_weights(tmp_path / "float64-1"), final_weights(tmp_path / "float64-2")
    assert one.keys() == two.keys()
    assert {tensor.dtype for tensor in one.values()} == {torch.float64}
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=0, atol=1e-9)
    for precision, tolerance in (("float64", 1e-9), ("float32", 1e-4)):
        losses = [read_metrics(tmp_path / f"{precision}-{n}", "train")["loss"].to_numpy() for n in (1, 2)]
        assert len(losses[0]) > 2
        assert losses[0] == pytest.approx(losses[1], abs=tolerance)
    seen = [
        json.loads((tmp_path / f"seen-float64-{n}-{rank}").read_text())
        for n, rank in ((1, 0), (2, 0), (2, 1))
    ]
    alone, first, second = ([name for ids, _ in batches for name in ids] for batches in seen)
    assert len(set(alone)) == len(alone)
    assert sorted(first + second) == sorted(alone)
    if (
        model == "caption"
    ):  # the loss is a mean over tokens, of which the processes have very different numbers
        ratios = [max(a, b) / min(a, b) for (_, a), (_, b) in zip(seen[1], seen[2], strict=True)]
        assert max(ratios) > 2


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
