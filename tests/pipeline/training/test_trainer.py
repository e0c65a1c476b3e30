"""The loop: exact resume, evaluation, best, accumulation, and what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from pipeline.training.records import pointed_to, read_record
from pipeline.training.resume import parent_config_file
from pipeline.training.runs import RunLockedError, read_metrics
from pipeline.training.step import NonFiniteLossError
from pipeline.training.trainer import TrainResult, train
from store_schema.errors import CheckpointError, ConfigError, InputNotFoundError, UsageError
from tests.pipeline.training.tiny_task import TinyBatch, TinyTask, run_tiny, sections_and_task

TIMES = ("seconds", "steps_per_second")


class PowerCut(Exception):
    """Ends a run without any chance to save."""


def weights_of(run: Path, which: str = "latest") -> dict[str, Tensor]:
    checkpoint = pointed_to(run / "checkpoints", which)
    assert checkpoint is not None
    return safetensors.torch.load_file(checkpoint / "model.safetensors")


def assert_equal_runs(run: Path, other: Path) -> None:
    """Weights, best, checkpoints by epoch and metrics, bit for bit, apart from times."""
    for which in ("latest", "best"):
        ours, theirs = weights_of(run, which), weights_of(other, which)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert metrics_without_times(run) == metrics_without_times(other)
    assert epoch_names(run) == epoch_names(other)


def metrics_without_times(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def epoch_names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("epoch-*"))


def run_with_cut(run: Path, step: int, *settings: str) -> None:
    """Train until the loss of a step is asked for, then die there."""

    class CutTask(TinyTask):
        def loss(
            self, batch: TinyBatch, *, step: int, epoch: int
        ) -> tuple[Tensor, Tensor | int, Mapping[str, Tensor]]:
            if step == cut_step:
                raise PowerCut
            return super().loss(batch, step=step, epoch=epoch)

    cut_step = step
    sections, task = sections_and_task(settings)
    task.__class__ = CutTask
    with pytest.raises(PowerCut):
        train(task, sections["training"], run, resolved_config=sections)


def test_training_makes_the_loss_fall(tmp_path: Path) -> None:
    result = run_tiny(tmp_path / "run", "epochs=10")
    assert (result.status, result.steps, result.exit_code) == ("finished", 100, 0)
    losses = read_metrics(tmp_path / "run", "train")["loss"]
    assert losses.iloc[-3:].mean() < 0.7 * losses.iloc[:3].mean()


SETTINGS = [
    ("save_every_steps=4",),
    ("save_every_steps=5", "eval_every=4", "accumulate=3", "max_steps=14", "epochs=0"),
    ("optimizer=adamax", "schedule=cosine", "warmup=0.2", "grad_clip=0.5", "save_every_steps=6"),
    ("optimizer=sgd", "schedule=step", "decay_every_epochs=1", "precision=bfloat16", "keep_last=1"),
    ("precision=float16", "init=xavier", "save_every_steps=7", "eval_every_epochs=2"),
]


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    """An undisturbed run of each of SETTINGS."""
    runs = {settings: tmp_path_factory.mktemp("whole") for settings in SETTINGS}
    for settings, run in runs.items():
        run_tiny(run, *settings)
    return runs


@pytest.mark.parametrize("cut_step", [0, 7, 10, 13])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings[0])
def test_a_run_cut_at_a_step_equals_one_that_was_not(
    tmp_path: Path,
    settings: tuple[str, ...],
    cut_step: int,
    whole_runs: dict[tuple[str, ...], Path],
) -> None:
    run_with_cut(tmp_path, cut_step, *settings)
    run_tiny(tmp_path, *settings)
    assert_equal_runs(tmp_path, whole_runs[settings])


def test_the_weights_of_a_cut_run_differ_without_the_saved_random_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above can fail: dropout and draws in the loss do depend on the generator."""
    run_tiny(tmp_path / "whole", "save_every_steps=3")
    run_with_cut(tmp_path / "cut", 16, "save_every_steps=3")
    monkeypatch.setattr("pipeline.training.state.set_rng_state", lambda state: None)
    run_tiny(tmp_path / "cut", "save_every_steps=3")
    with pytest.raises(AssertionError):
        assert_equal_runs(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("resume", ["best", "epoch-0001", "path", "run path"])
def test_going_back_to_an_earlier_checkpoint_gives_the_same_end(tmp_path: Path, resume: str) -> None:
    run_tiny(tmp_path / "whole", "eval_every=4", "save_every_steps=3")
    run_with_cut(tmp_path / "back", 27, "eval_every=4", "save_every_steps=3")
    where: str | Path = resume
    if resume == "path":
        where = tmp_path / "back" / "checkpoints" / "epoch-0002"
    elif resume == "run path":
        where = tmp_path / "back"
    run_tiny(tmp_path / "back", "eval_every=4", "save_every_steps=3", resume=where)
    assert_equal_runs(tmp_path / "back", tmp_path / "whole")


def test_evaluating_more_often_does_not_change_the_weights(tmp_path: Path) -> None:
    run_tiny(tmp_path / "seldom", "eval_every_epochs=0")
    run_tiny(tmp_path / "often", "eval_every=1")
    seldom, often = weights_of(tmp_path / "seldom"), weights_of(tmp_path / "often")
    assert all(torch.equal(seldom[name], often[name]) for name in seldom)


def test_accumulated_batches_equal_one_large_batch_with_unequal_items(tmp_path: Path) -> None:
    exact = ("dropout=0", "float64=true", "ragged=true", "epochs=2", "optimizer=sgd", "grad_clip=1.0")
    run_tiny(tmp_path / "large", *exact, "batch_size=8")
    run_tiny(tmp_path / "small", *exact, "batch_size=2", "accumulate=4")
    large, small = weights_of(tmp_path / "large"), weights_of(tmp_path / "small")
    assert all(torch.allclose(large[name], small[name], rtol=0, atol=1e-12) for name in large)
    losses = [read_metrics(tmp_path / name, "train")["loss"].iloc[-1] for name in ("large", "small")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)


def test_best_names_the_evaluation_with_the_best_metric(tmp_path: Path) -> None:
    result = run_tiny(tmp_path / "run", "eval_every=4", "lr=0.3")
    scores = read_metrics(tmp_path / "run", "eval")
    assert result.best is not None
    assert read_record(result.best).step == scores["step"][scores["fit"].argmax()]


def test_the_same_command_again_says_that_the_run_is_finished(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = run_tiny(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with caplog.at_level("INFO"):
        again = run_tiny(tmp_path / "run")
    assert (again.status, again.steps, again.last, again.exit_code) == ("finished before", 30, first.last, 0)
    assert "finished already, after 30 steps" in caplog.text
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_another_configuration_in_the_same_folder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    run_tiny(tmp_path / "run")
    with pytest.raises(
        UsageError, match=r"training\.lr was 0\.01, now 0\.5.*--out NEW.*--resume .* --out NEW"
    ):
        run_tiny(tmp_path / "run", "lr=0.5")


def test_knobs_that_change_no_result_may_change_in_a_run(tmp_path: Path) -> None:
    run_with_cut(tmp_path / "run", 16)
    result = run_tiny(tmp_path / "run", "log_every=2", "num_workers=3", "device=cpu", "keep_last=1")
    assert result.status == "finished"


def test_a_fresh_start_is_refused_where_a_run_is(tmp_path: Path) -> None:
    run_tiny(tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run already"):
        run_tiny(tmp_path / "run", resume=None)


@pytest.mark.parametrize(
    ("resume", "error", "message"),
    [
        ("latest", UsageError, "has no checkpoints yet"),
        ("best", UsageError, "has no checkpoints yet"),
        ("/nowhere/at/all", InputNotFoundError, "no checkpoint or run /nowhere/at/all"),
    ],
)
def test_resuming_from_nothing_is_refused(
    tmp_path: Path, resume: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_tiny(tmp_path / "run", resume=resume)


def test_resuming_from_an_epoch_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    run_tiny(tmp_path / "run", "epochs=2")
    with pytest.raises(InputNotFoundError, match="has only epoch-0001, epoch-0002"):
        run_tiny(tmp_path / "run", "epochs=2", resume="epoch-0007")


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_samples(tmp_path: Path) -> None:
    settings = ("nan_at_step=13", "save_every_steps=2")
    with pytest.raises(
        NonFiniteLossError, match=r"the loss is nan at step 14 \(epoch 2, batch 4 of 10\), with sample-\d+, "
    ):
        run_tiny(tmp_path / "run", *settings)
    latest = pointed_to(tmp_path / "run" / "checkpoints", "latest")
    assert latest is not None
    assert latest.name == "step-00000012"
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(tmp_path / "run").values())


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    class RootTask(TinyTask):
        def loss(
            self, batch: TinyBatch, *, step: int, epoch: int
        ) -> tuple[Tensor, Tensor | int, Mapping[str, Tensor]]:
            output = self.model(batch.inputs)
            return ((output - output.detach()).abs().sqrt()).sum(), len(batch.ids), {}  # slope at 0: infinite

    sections, task = sections_and_task(())
    task.__class__ = RootTask
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match="the gradient's norm is nan at step 1 "):
        train(task, sections["training"], tmp_path / "run", resolved_config=sections)
    assert all(torch.equal(before[name], tensor) for name, tensor in task.model.state_dict().items())


def test_a_best_metric_that_is_never_computed_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'fitness'.*known are fit, error"):
        run_tiny(tmp_path / "run", "best_metric=fitness")


def test_a_run_saves_every_so_many_minutes(tmp_path: Path) -> None:
    with_clock = ("save_every_minutes=0.0005", "step_seconds=0.01")  # 30 ms
    run_with_cut(tmp_path / "run", 9, *with_clock)
    latest = pointed_to(tmp_path / "run" / "checkpoints", "latest")
    assert latest is not None
    assert 3 <= read_record(latest).step <= 9


def test_keep_last_keeps_the_last_epochs_and_the_best(tmp_path: Path) -> None:
    run_tiny(tmp_path / "run", "epochs=6", "lr=0.5", "keep_last=2", "save_every_steps=3")
    best = pointed_to(tmp_path / "run" / "checkpoints", "best")
    assert best is not None
    assert set(epoch_names(tmp_path / "run")) == {"epoch-0005", "epoch-0006"} | (
        {best.name} if best.name.startswith("epoch") else set()
    )
    assert list((tmp_path / "run" / "checkpoints").glob("step-*")) == []


def test_a_run_whose_latest_record_is_damaged_goes_on_from_another_checkpoint(tmp_path: Path) -> None:
    settings = ("save_every_steps=3", "keep_last=1")
    run_tiny(tmp_path / "whole", *settings)
    run_with_cut(tmp_path / "run", 24, *settings)
    latest = pointed_to(tmp_path / "run" / "checkpoints", "latest")
    assert latest is not None
    (latest / "checkpoint.json").write_text("{")
    with pytest.raises(CheckpointError, match="was it cut short"):
        run_tiny(tmp_path / "run", *settings)
    run_tiny(tmp_path / "run", *settings, resume="epoch-0002")
    assert metrics_without_times(tmp_path / "run") == metrics_without_times(tmp_path / "whole")


def test_a_second_process_in_the_run_folder_is_refused_and_the_first_named(tmp_path: Path) -> None:
    class NestedTask(TinyTask):
        def evaluate(self) -> Mapping[str, float]:
            with pytest.raises(RunLockedError, match=r"another process \(pid \d+ on .*\) is training in"):
                run_tiny(tmp_path / "run")
            return super().evaluate()

    sections, task = sections_and_task(("epochs=1",))
    task.__class__ = NestedTask
    assert train(task, sections["training"], tmp_path / "run", resolved_config=sections).status == "finished"


def branch(tmp_path: Path, resume: Path, *settings: str) -> TrainResult:
    return run_tiny(tmp_path / "branch", *settings, resume=resume)


def test_a_branch_takes_its_parents_weights_and_its_own_settings_and_records_both(tmp_path: Path) -> None:
    run_tiny(tmp_path / "run")
    parent = tmp_path / "run" / "checkpoints" / "epoch-0002"
    result = branch(tmp_path, parent, "lr=0.002", "epochs=4", "weight_decay=0.1")
    assert (result.steps, result.status) == (40, "finished")
    info = json.loads((tmp_path / "branch" / "run.json").read_text())
    assert info["parent"]["checkpoint"] == str(parent)
    assert info["parent"]["step"] == 20
    assert info["parent"]["changes"] == {
        "training.epochs": [3, 4],
        "training.lr": [0.01, 0.002],
        "training.weight_decay": [0.0, 0.1],
    }
    metrics = read_metrics(tmp_path / "branch", "train")
    assert metrics["step"].iloc[0] == 24
    assert set(metrics["lr"]) == {0.002}


def test_the_configuration_that_a_branch_changes_is_its_parents(tmp_path: Path) -> None:
    run_tiny(tmp_path / "run", "epochs=1")
    config, branch_dir = tmp_path / "run" / "config.toml", tmp_path / "branch"
    assert parent_config_file(branch_dir, tmp_path / "run") == config
    assert parent_config_file(branch_dir, tmp_path / "run" / "checkpoints" / "epoch-0001") == config
    assert parent_config_file(tmp_path / "run", tmp_path / "run") is None
    assert parent_config_file(branch_dir, "latest") is None


def test_a_branch_without_changes_equals_its_parent(tmp_path: Path) -> None:
    run_tiny(tmp_path / "run")
    branch(tmp_path, tmp_path / "run" / "checkpoints" / "epoch-0001")
    ours, theirs = weights_of(tmp_path / "branch"), weights_of(tmp_path / "run")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_branch_that_was_cut_goes_on_with_itself_by_the_same_command(tmp_path: Path) -> None:
    run_tiny(tmp_path / "run")
    parent = tmp_path / "run" / "checkpoints" / "epoch-0001"
    branch(tmp_path, parent, "epochs=5")
    again = branch(tmp_path, parent, "epochs=5")
    assert again.status == "finished before"
    with pytest.raises(UsageError, match=r"began from .*epoch-0001, not from .*epoch-0002"):
        branch(tmp_path, tmp_path / "run" / "checkpoints" / "epoch-0002", "epochs=5")


def test_a_branch_of_another_optimizer_begins_with_fresh_moments(tmp_path: Path) -> None:
    run_tiny(tmp_path / "run")
    assert branch(tmp_path, tmp_path / "run", "epochs=4", "optimizer=sgd").steps == 40


def test_a_branch_with_nothing_left_to_train_is_refused(tmp_path: Path) -> None:
    run_tiny(tmp_path / "run")
    with pytest.raises(UsageError, match=r"nothing is left to train.*--set training\.epochs"):
        branch(tmp_path, tmp_path / "run", "lr=0.1")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("store=store-b", "another store: store-a there, store-b here"),
        ("hidden=8", "another model: tiny-16 there, tiny-8 here"),
    ],
)
def test_another_model_or_store_is_refused_with_both_named(
    tmp_path: Path, setting: str, message: str
) -> None:
    run_tiny(tmp_path / "run")
    with pytest.raises(CheckpointError, match=message):
        branch(tmp_path, tmp_path / "run", setting, "epochs=4")


def test_a_branch_with_another_batch_size_goes_on_at_the_next_sample(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_with_cut(tmp_path / "run", 16, "save_every_steps=6")  # 2 batches of 4 into the second epoch
    sections, task = sections_and_task(("batch_size=2", "epochs=2"))
    train(
        task,
        sections["training"],
        tmp_path / "branch",
        resolved_config=sections,
        resume=tmp_path / "run",
    )
    order = [f"sample-{i}" for indices in task.order(1) for i in indices]
    assert task.seen == order[8:]
    assert "batch_size was 4, is 2" in caplog.text


def test_a_torn_last_line_of_metrics_is_dropped(tmp_path: Path) -> None:
    run_tiny(tmp_path / "whole", "save_every_steps=3")
    run_with_cut(tmp_path / "cut", 16, "save_every_steps=3")
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "ste')
    run_tiny(tmp_path / "cut", "save_every_steps=3")
    assert_equal_runs(tmp_path / "cut", tmp_path / "whole")
