"""What a run folder records, and the table of runs."""

import json
import logging
import shutil
from pathlib import Path

import matplotlib as mpl
import pytest

from pipeline.config import load_config, read_toml
from pipeline.training.config import TrainingConfig
from pipeline.training.run_plot import plot_runs
from pipeline.training.runs import list_runs, read_metrics, software_versions
from store_schema.errors import InputNotFoundError, UsageError
from tests.pipeline.training.tiny_task import TinyConfig, run_tiny


def test_runs_are_listed_with_their_best_their_parent_and_what_changed(tmp_path: Path) -> None:
    run_tiny(tmp_path / "first")
    run_tiny(tmp_path / "second", "lr=0.02", "epochs=4", resume=tmp_path / "first")
    (tmp_path / "not a run").mkdir()
    table = list_runs(tmp_path).set_index("name")
    assert table.index.tolist() == ["first", "second"]
    assert table["status"].tolist() == ["finished", "finished"]
    assert table["step"].tolist() == [30, 40]
    assert table["task"].tolist() == ["tiny", "tiny"]
    assert table["metric"].tolist() == ["fit", "fit"]
    for name in table.index:
        assert table["best"][name] == read_metrics(tmp_path / name, "eval")["fit"].max()
    assert table["changes"].tolist() == ["", "training.epochs: 3 to 4, training.lr: 0.01 to 0.02"]
    assert table["parent"]["second"].endswith("first/checkpoints/epoch-0003")


def test_an_empty_folder_has_an_empty_table_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    assert len(list_runs(tmp_path)) == 0
    with pytest.raises(InputNotFoundError, match="no run or folder of runs"):
        list_runs(tmp_path / "absent")
    with pytest.raises(InputNotFoundError, match="is not a run"):
        read_metrics(tmp_path, "train")


def test_runs_are_named_one_by_one_or_by_their_folder(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        run_tiny(tmp_path / "runs" / name, "epochs=1")
    runs = tmp_path / "runs"
    assert list_runs(runs)["name"].tolist() == ["a", "b", "c"]
    some = list_runs(runs / "c", runs / "a")
    assert some["name"].tolist() == ["c", "a"]
    assert some["path"].tolist() == [str(runs / "c"), str(runs / "a")]


def test_a_plot_shows_loss_and_metric_of_every_run_that_has_logged(tmp_path: Path) -> None:
    """As SVG, whose text can be read."""
    run_tiny(tmp_path / "quick", "lr=0.05")
    run_tiny(tmp_path / "slow", "lr=0.001")
    shutil.copytree(tmp_path / "slow", tmp_path / "silent")
    (tmp_path / "silent" / "metrics.jsonl").unlink()
    with mpl.rc_context({"svg.fonttype": "none"}):
        assert plot_runs([tmp_path], tmp_path / "new" / "runs.svg") == 2
    drawn = (tmp_path / "new" / "runs.svg").read_text()
    assert all(f">{text}<" in drawn for text in ("quick", "slow", "tiny", "training loss", "fit", "step"))
    assert "silent" not in drawn
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["runs.svg"]
    with pytest.raises(UsageError, match=r"expected a name that ends with \.png"):
        plot_runs([tmp_path], tmp_path / "runs.tiff")
    with pytest.raises(UsageError, match="has logged anything yet"):
        plot_runs([tmp_path / "silent"], tmp_path / "runs.png")


def test_a_damaged_run_is_listed_as_such(tmp_path: Path) -> None:
    run_tiny(tmp_path / "run", "epochs=1")
    (tmp_path / "run" / "checkpoints" / "epoch-0001" / "checkpoint.json").write_text("{")
    assert list_runs(tmp_path)["status"].tolist() == ["damaged"]


def test_a_run_folder_records_configuration_versions_and_sessions(tmp_path: Path) -> None:
    run_tiny(tmp_path / "run", "epochs=1")
    sections = load_config({"training": TrainingConfig, "task": TinyConfig}, tmp_path / "run" / "config.toml")
    assert sections["training"].epochs == 1
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["identity"] == {"model": "tiny-16", "store": "store-a"}
    (session,) = info["sessions"]
    assert (session["from_step"], session["to_step"], session["status"]) == (0, 10, "finished")
    assert session["versions"] == software_versions()
    assert {"python", "torch", "numpy"} <= session["versions"].keys()


def test_what_is_logged_is_also_in_the_runs_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run_tiny(tmp_path / "run", "epochs=1")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "step 10/10 (epoch 1): loss " in log
    assert "finished: 10 steps" in log


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    run_tiny(tmp_path / "run", "epochs=1", "tensorboard=true")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    metrics = read_metrics(tmp_path / "run", "train")
    assert list(losses) == metrics["step"].tolist()
    assert list(losses.values()) == pytest.approx(metrics["loss"].tolist())
    assert {"eval/fit", "train/lr", "train/grad_norm"} <= set(events.Tags()["scalars"])


def test_every_shipped_configuration_is_toml_with_valid_training_knobs() -> None:
    files = sorted((Path(__file__).resolve().parents[3] / "pipeline" / "configs").glob("*.toml"))
    assert files
    for file in files:
        knobs = read_toml(file).get("training", {})
        load_config(
            {"training": TrainingConfig}, None, [f"training.{k}={json.dumps(v)}" for k, v in knobs.items()]
        )
