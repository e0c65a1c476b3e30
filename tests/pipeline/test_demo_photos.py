"""The demonstration on photographs: skipped without them, and one report of two data sets."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.demo_photos import NEEDED, _merge, missing_data, run_demo_photos
from pipeline.evaluation import write_json
from pipeline.report import write_report
from store_schema.errors import InputNotFoundError
from tests.pipeline.conftest import Scores


def test_the_first_missing_file_is_named_until_all_are_there(tmp_path: Path) -> None:
    for name in NEEDED:
        assert missing_data(tmp_path) == name
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert missing_data(tmp_path) is None


def test_without_photographs_the_command_skips_with_the_reason_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flickr8k").mkdir()
    (tmp_path / "flickr8k" / "captions.csv").write_text("")
    assert main(["demo-photos", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"demo-photos skipped: {tmp_path / 'daquar/qa.csv'} is not there")
    assert output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_from_python_missing_photographs_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"flickr8k/captions\.csv is not there"):
        run_demo_photos(tmp_path, tmp_path / "out", seed=1, say=print)


def test_one_report_has_the_captions_of_one_data_set_and_the_answers_of_the_other(
    scores: Scores, tmp_path: Path
) -> None:
    """Both parts are the same evaluation here, one with its captions and one with its answers taken out."""
    sets = {name: tmp_path / name for name in ("flickr8k", "daquar")}
    kept = {
        "flickr8k": ("caption", "captions", ("most_common_caption", "human_caption")),
        "daquar": ("vqa", "answers", ("most_common_answer",)),
    }
    for name, folder in sets.items():
        shutil.copytree(scores.folder / "examples", folder / "examples")
        part, kind, baselines = kept[name]
        report = {key: scores.report[key] for key in ("data", "store", "k", "versions", part)}
        report["baselines"] = {key: scores.report["baselines"][key] for key in baselines}
        write_json(folder / "report.json", report)
        drawn = json.loads((scores.folder / "examples.json").read_text())
        write_json(folder / "examples.json", {key: drawn[key] for key in ("regions", kind)})

    _merge(tmp_path, sets, seconds={"total": 3.0}, seed=7)

    merged = json.loads((tmp_path / "report.json").read_text())
    assert merged["caption"]["regions"]["cider_d"] == scores.report["caption"]["regions"]["cider_d"]
    assert merged["vqa"]["regions"]["accuracy"] == scores.report["vqa"]["regions"]["accuracy"]
    assert set(merged["baselines"]) == {"most_common_caption", "human_caption", "most_common_answer"}
    assert merged["data"] == {"name": "flickr8k (8 pictures) and daquar (8 pictures)", "split": "val"}
    assert (merged["seed"], merged["seconds"], merged["k"]) == (7, {"total": 3.0}, 6)
    examples = json.loads((tmp_path / "examples.json").read_text())
    assert {kind: len(drawn) for kind, drawn in examples.items()} == {
        "regions": 6, "captions": 3, "answers": 3,
    }  # fmt: skip
    # The report finds every drawing where the merged examples say it is.
    _, page = write_report(tmp_path)
    assert page.read_text().count("data:image/png;base64,") == 12
