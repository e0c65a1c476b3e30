import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from pipeline.scenes.generate import generate_scenes
from store_schema.errors import UsageError
from store_schema.tables import check_references, read_table
from tests.pipeline.scenes.scene_checks import Thing, answer_of, caption_is_true

REPOSITORY = Path(__file__).resolve().parents[3]
Tables = dict[str, pd.DataFrame]


def test_tables_and_pictures_belong_together(scenes: Path, tables: Tables) -> None:
    images = tables["images"]
    for name in ("objects", "captions", "questions"):
        check_references(scenes, name, tables[name], images)
    assert list(images["image_id"][:2]) == ["s7-000000", "s7-000001"]
    assert list(images["split"].value_counts()[["train", "val", "test"]]) == [24, 3, 3]
    for row in images.itertuples():
        with Image.open(scenes / str(row.path)) as picture:
            assert (picture.format, picture.size) == ("JPEG", (row.width, row.height))
    assert set(tables["captions"].groupby("image_id").size()) == {5}
    assert set(tables["object_attributes"]["object_id"]) == set(tables["objects"]["object_id"])
    assert set(tables["answers"]["question_id"]) == set(tables["questions"]["question_id"])


def test_captions_and_answers_are_true_of_the_objects_table(tables: Tables) -> None:
    """From the written tables alone, as a stranger would read them."""
    attributes = tables["object_attributes"].groupby("object_id")["attribute"].agg(frozenset)
    answers = tables["answers"].set_index("question_id")["answer"]
    for image_id in tables["images"]["image_id"]:
        mine = {
            name: tables[name][tables[name]["image_id"] == image_id].to_dict("records")
            for name in ("objects", "captions", "questions")
        }
        things = [
            Thing(
                row["object"],
                attributes[row["object_id"]],
                (row["x1"] + row["x2"]) / 2 / 96,
                (row["y1"] + row["y2"]) / 2 / 96,
                (row["x2"] - row["x1"]) * (row["y2"] - row["y1"]) / 96**2,
            )
            for row in mine["objects"]
        ]
        assert all(caption_is_true(caption["text"], things) for caption in mine["captions"])
        for question in mine["questions"]:
            assert answer_of(question["text"], things) == answers[question["question_id"]]


def test_same_seed_gives_the_same_bytes_with_two_workers(scenes: Path, tmp_path: Path) -> None:
    generate_scenes(tmp_path / "again", num_images=30, seed=7, size=96, workers=2, progress=False)
    assert file_bytes(tmp_path / "again") == file_bytes(scenes)


def test_a_picture_does_not_depend_on_how_many_are_drawn(scenes: Path, tmp_path: Path) -> None:
    generate_scenes(tmp_path / "few", num_images=3, seed=7, size=96, workers=1, progress=False)
    few, many = file_bytes(tmp_path / "few"), file_bytes(scenes)
    assert all(few[f"images/00000{index}.jpg"] == many[f"images/00000{index}.jpg"] for index in range(3))


def test_another_seed_gives_other_pictures_and_ids(scenes: Path, tmp_path: Path) -> None:
    generate_scenes(tmp_path / "other", num_images=3, seed=8, size=96, workers=1, progress=False)
    images = read_table(tmp_path / "other", "images")
    assert images["image_id"][0] == "s8-000000"
    assert file_bytes(tmp_path / "other")["images/000000.jpg"] != file_bytes(scenes)["images/000000.jpg"]


def test_a_finished_folder_is_left_alone(scenes: Path) -> None:
    before = file_bytes(scenes)
    summary = generate_scenes(scenes, num_images=30, seed=7, size=96, progress=False)
    assert summary.existed
    assert summary.num_captions == 150
    assert file_bytes(scenes) == before


def test_other_parameters_into_a_finished_folder_are_refused(scenes: Path) -> None:
    with pytest.raises(UsageError, match="seed is 7 there and 8 here"):
        generate_scenes(scenes, num_images=30, seed=8, size=96)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a folder of generated scenes"):
        generate_scenes(tmp_path, num_images=3, seed=0)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_finished_folder_that_lost_a_table_is_refused(tmp_path: Path) -> None:
    generate_scenes(tmp_path / "data", num_images=1, seed=0, size=64, progress=False)
    (tmp_path / "data/answers.parquet").unlink()
    with pytest.raises(UsageError, match=r"answers.parquet is missing"):
        generate_scenes(tmp_path / "data", num_images=1, seed=0, size=64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "must be 1 or more, it is 0"),
        ({"size": 32}, "size must be 64 to 1024 pixels, it is 32"),
        ({"seed": -1}, "seed must be 0 or more, it is -1"),
        ({"workers": 0}, "workers must be 1 or more, it is 0"),
        ({"splits": {"train": 0.5}}, "add up to 1"),
    ],
)
def test_arguments_out_of_range_are_refused(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        generate_scenes(tmp_path / "data", **({"num_images": 3, "seed": 0} | arguments))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.slow
def test_an_interrupted_run_leaves_nothing_whole_and_the_next_one_succeeds(
    tmp_path: Path, scenes: Path, stop: signal.Signals
) -> None:
    """Stopped while pictures are written by two workers; the workers end too."""
    out = tmp_path / "data"
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\nfrom pipeline.scenes.generate import generate_scenes\n"
        "if __name__ == '__main__':\n    generate_scenes(sys.argv[1], num_images=20000, seed=7, size=96, workers=2)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script), str(out)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    pictures = out.with_name("data.partial") / "images"
    wait_until(lambda: pictures.is_dir() and len(list(pictures.iterdir())) > 100)
    process.send_signal(stop)
    process.wait(timeout=60)
    assert not out.exists()
    wait_until(lambda: not processes_of_session(process.pid))
    generate_scenes(out, num_images=30, seed=7, size=96, progress=False)
    assert file_bytes(out) == file_bytes(scenes)
    assert not out.with_name("data.partial").exists()


def test_scenes_json_says_what_the_set_was_made_with(scenes: Path) -> None:
    found = json.loads((scenes / "scenes.json").read_text())
    assert (found["specification"], found["seed"], found["size"]) == (1, 7, 96)
    assert found["counts"]["images"] == 30
    assert len(found["objects"]) >= 12
    assert len(found["attributes"]) >= 10


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def wait_until(condition: object, seconds: float = 60.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def processes_of_session(session: int) -> list[int]:
    """Live processes of a session: the run, its fork server and its workers."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found
