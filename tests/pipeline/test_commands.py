"""Commands as a user types them: what they print, and one clear line with exit code 2 for every mistake."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from pipeline.cli import main
from store_schema.artifacts import find_model_dir
from store_schema.reader import RegionStore
from store_schema.tables import read_table
from tests.pipeline.conftest import Butd, Scores, World


class Done(NamedTuple):
    code: int
    output: str
    errors: str


Run = Callable[..., Done]


@pytest.fixture
def butd(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: what it prints is what the user sees, but for log lines."""

    def run(*arguments: str | Path) -> Done:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


def assert_refused(done: Done, *parts: str, code: int = 2) -> None:
    """One line on stderr, nothing on stdout, no traceback."""
    assert done.code == code, done
    assert done.output == ""
    assert done.errors.count("\n") == 1, done.errors
    assert done.errors.startswith("butd ")
    assert "Traceback" not in done.errors
    for part in parts:
        assert part in done.errors


# Bad input, by command. Words that begin with "world." stand for the world's paths.
MISTAKES: dict[str, tuple[str, tuple[str, ...]]] = {
    "scenes: none": ("scenes OUT --images 0", ("must be 1 or more, it is 0",)),
    "scenes: splits": ("scenes OUT --images 4 --splits train", ("--splits train", "NAME=FRACTION")),
    "scenes: size": ("scenes OUT --images 4 --size 9", ("64 to 1024 pixels, it is 9",)),
    "prepare: folder": ("prepare daquar no-such-folder OUT", ("no-such-folder", "there is nothing")),
    "prepare: foreign folder": ("prepare flickr8k world.runs OUT", ("captions.csv", "neither is there")),
    "answer: no question": ("answer world.vqa", ("give a question and pictures",)),
    "answer: split without tables": ("answer world.vqa why? --split test", ("--tables, --split and --results",)),
    "answer: tables alone": ("answer world.vqa --tables world.scenes", ("needs --split and --results",)),
    "answer: unknown split": (
        "answer world.vqa --tables world.scenes --split dev --results OUT --store world.regions",
        ("no questions with split 'dev'",),
    ),
    "train: tables": ("train detector --tables no-tables --out OUT", ("no-tables, there is none",)),
    "train: no tables in it": (
        "train vqa --tables world.runs --store world.regions --out OUT",
        ("questions.parquet", "butd prepare"),
    ),
    "train: store": (
        "train caption --tables world.scenes --store none.zarr --out OUT",
        ("no region store at none.zarr", "butd detect"),
    ),
    "train: store needed": ("train caption --tables world.scenes --out OUT", ("--store is needed",)),
    "train: store of a detector": (
        "train detector --tables world.scenes --store world.regions --out OUT",
        ("--store has no effect on the detector",),
    ),
    "train: images' root": (
        "train vqa --tables world.scenes --images-root world.scenes --out OUT",
        ("--images-root has no effect on vqa",),
    ),
    "train: config": (
        "train vqa --tables world.scenes --out OUT --config vqa-bindin",
        ("--config vqa-bindin", "vqa-binding"),
    ),
    "train: key": (
        "train vqa --tables world.scenes --out OUT --set training.lrr=1",
        ("unknown key 'lrr'", "did you mean 'lr'?"),
    ),
    "train: value": (
        "train vqa --tables world.scenes --out OUT --set model.form=papr",
        ("model.form", "did you mean 'paper'?"),
    ),
    "train: type": (
        "train vqa --tables world.scenes --out OUT --set training.epochs=many",
        ("training.epochs", "expected an integer"),
    ),
    "train: time": ("train vqa --tables world.scenes --out OUT --time-limit 3x", ("time limit '3x'",)),
    "train: nothing to resume": (
        "train vqa --tables world.scenes --out OUT --config vqa-question-only --resume",
        ("has no checkpoints yet",),
    ),
    "train: another configuration": (
        "train vqa --tables world.scenes --out world.vqa_blind --config vqa-question-only",
        ("another configuration", "--out NEW"),
    ),
    "detect: pictures of tables": (
        "detect world.scenes --images-root world.runs --weights world.detector --store OUT",
        ("none of the 40 pictures is there", "images/000000.jpg", "--images-root"),
    ),
    "detect: pictures": (
        "detect no-pictures --weights world.detector --store OUT",
        ("no-pictures", "no such file or folder"),
    ),
    "detect: weights": ("detect world.scenes --weights none --store OUT", ("no model at none",)),
    "detect: not a detector": (
        "detect world.scenes --weights world.caption --store OUT",
        ("a detector expected", "'caption'"),
    ),
    "detect: another detector": (
        "detect world.scenes --weights world.other_detector --store world.regions --regions 6",
        ("world/regions.zarr", "detector"),
    ),
    "detect: a store behind a URL": (
        "detect world.scenes --weights world.detector --store https://me:secret@host/x.zarr",
        ("--store https://host/x.zarr", "written to a folder of this machine"),
    ),
    "detect: boxes of a grid": (
        "detect world.scenes --weights world.detector --store OUT --mode grid --boxes-only",
        ("--boxes-only has no effect with --mode grid",),
    ),
    "detect: two classifiers": (
        "detect world.scenes --weights timm:resnet18 --classifier resnet18 --store OUT",
        ("timm:resnet18 says which classifier it is",),
    ),
    "detect: boxes": ("detect world.scenes --weights world.detector --store OUT --mode given", ("--boxes",)),
    "detect: k twice": (
        "detect world.scenes --weights world.detector --store OUT --regions 3 --min-regions 1 --max-regions 4",
        ("--regions fixes k",),
    ),
    "detect: half a limit": (
        "detect world.scenes --weights world.detector --store OUT --max-regions 4",
        ("both --min-regions and --max-regions",),
    ),
    "detect: threshold of a grid": (
        "detect world.scenes --weights world.detector --store OUT --mode grid --nms-thresh .5",
        ("--nms-thresh has no effect with --mode grid",),
    ),
    "detect: boxes without given": (
        "detect world.scenes --weights world.detector --store OUT --boxes world.scenes",
        ("--boxes has no effect with --mode proposal",),
    ),
    "detect: classifier's size": (
        "detect world.scenes --weights world.detector --store OUT --short-side 64",
        ("--short-side is for --classifier",),
    ),
    "detect: threshold": (
        "detect world.scenes --weights world.detector --store OUT --score-thresh 2",
        ("score_thresh must lie in 0..1",),
    ),
    "detect: split": (
        "detect world.scenes --weights world.detector --store OUT --split dev",
        ("no pictures found of split 'dev'",),
    ),
    "detect: device": (
        "detect world.scenes --weights world.detector --store OUT --device gpu",
        ("--device gpu: expected auto, cpu, cuda",),
    ),
    "store: none": ("store info no-store", ("no region store at no-store",)),
    "store: not one": ("store verify world.scenes", ("no region store at", "no zarr.json")),
    "store: picture": ("store show world.regions nobody", ("'nobody'",)),
    "store: picture's file": ("store show world.regions s5-000000 --image no.jpg", ("no.jpg", "no such file")),
    "caption: model": ("caption no-model world.picture", ("no model at no-model",)),
    "caption: of another task": ("caption world.vqa world.picture", ("'vqa'", "'caption'")),
    "caption: another detector": (
        "caption world.caption --store world.other_regions",
        ("was trained on features", "holds features"),
    ),
    "caption: grid": ("caption world.caption --store world.grid", ("was trained on features",)),
    "caption: nothing": ("caption world.caption", ("name picture files",)),
    "caption: both": ("caption world.caption world.picture --store world.regions", ("not both",)),
    "caption: draw": ("caption world.caption --store world.regions --draw OUT", ("--draw needs picture files",)),
    "caption: beam": (
        "caption world.caption --store world.regions --beam-size 0",
        ("beam_size", "at least 1"),
    ),
    "caption: device": ("caption world.caption --store world.regions --device cud", ("--device cud: expected",)),
    "answer: another detector": (
        "answer world.vqa what? --store world.other_regions",
        ("was trained on features", "holds features"),
    ),
    "answer: of another task": ("answer world.caption what? world.picture", ("'caption'", "'vqa'")),
    "answer: best": ("answer world.vqa what? --store world.regions --best 0", ("--best 0",)),
    "answer: blind": ("answer world.vqa_blind what? world.picture", ("sees no regions", "--store")),
    "answer: id": ("answer world.vqa what? --store world.regions --ids nobody", ("'nobody'",)),
    "evaluate: run": ("evaluate no-run --tables world.scenes --out OUT", ("no-run, there is no folder",)),
    "evaluate: split": (
        "evaluate world.vqa --tables world.scenes --out OUT --split dev",
        ("['test', 'train', 'val']", "'dev'"),
    ),
    "evaluate: tables": ("evaluate world.vqa --tables world.runs --out OUT", ("images.parquet",)),
    "evaluate: store": (
        "evaluate world.vqa --tables world.scenes --store world.other_regions --out OUT",
        ("holds features", "were trained on"),
    ),
    "report: none": ("report no-report", ("no-report/report.json", "butd evaluate")),
    "runs: none": ("runs no-runs", ("no-runs",)),
    "option": ("detect world.scenes --weight x --store OUT", ("--weights",)),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_exit_code_2(
    mistake: str, butd: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # names without a folder are missing here
    command, parts = MISTAKES[mistake]
    words = [
        getattr(world, w.removeprefix("world.")) if w.startswith("world.") else w for w in command.split()
    ]
    done = butd(*[tmp_path / "out" if word == "OUT" else word for word in words])
    assert_refused(done, *(part.replace("world/", f"{world.root}/") for part in parts))
    assert not (tmp_path / "out" / "zarr.json").exists()
    assert not list((tmp_path / "out").glob("checkpoints/*.json"))


@pytest.mark.parametrize("task", ["caption", "vqa"])
def test_a_store_of_boxes_alone_can_be_made_and_is_refused_by_training(
    butd: Run, world: World, tmp_path: Path, task: str
) -> None:
    store = tmp_path / "boxes.zarr"
    options = ("--weights", world.detector, "--store", store, "--regions", "4", "--boxes-only")
    assert butd("detect", world.scenes, *options, "--verify").output.endswith("verified: whole\n")
    done = butd("train", task, "--tables", world.scenes, "--store", store, "--out", tmp_path / "run")
    assert_refused(done, f"{store} holds boxes and labels alone")


def test_a_configuration_file_with_an_unknown_key_names_file_and_closest(
    butd: Run, world: World, tmp_path: Path
) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("[training]\nepochs = 1\n\n[model]\nhiden_dim = 8\n")
    done = butd("train", "vqa", "--tables", world.scenes, "--out", tmp_path / "run", "--config", config)
    assert_refused(done, "unknown key 'hiden_dim' in [model]", str(config), "did you mean 'hidden_dim'?")


@pytest.mark.parametrize(
    ("command", "file", "said"),
    [
        ("caption", "model.safetensors", "cut short"),
        ("caption", "model.json", "cannot be read"),
        ("detect", "model.safetensors", "cut short"),
        ("evaluate", "model.safetensors", "cut short"),
    ],
)
def test_a_checkpoint_cut_short_is_named(
    butd: Run, world: World, tmp_path: Path, command: str, file: str, said: str
) -> None:
    run = world.detector if command == "detect" else world.caption
    model = shutil.copytree(find_model_dir(run), tmp_path / "model")
    os.truncate(model / file, (model / file).stat().st_size // 2)
    match command:
        case "caption":
            done = butd("caption", model, world.picture)
        case "detect":
            done = butd("detect", world.scenes, "--weights", model, "--store", tmp_path / "store")
        case _:
            done = butd("evaluate", model, "--tables", world.scenes, "--out", tmp_path / "out")
    assert_refused(done, str(model / file), said, "take another checkpoint")


def test_a_run_whose_checkpoint_is_cut_short_does_not_go_on_from_it(
    butd: Run, world: World, tmp_path: Path
) -> None:
    run = shutil.copytree(world.vqa, tmp_path / "run")
    weights = find_model_dir(run, "latest") / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    done = butd(
        "train", "vqa", "--tables", world.scenes, "--store", world.regions, "--out", tmp_path / "branch",
        "--resume", run,
    )  # fmt: skip
    assert_refused(done, f"{weights.parent}: {weights.name}", "was it cut short?")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("command", ["detect", "caption", "train"])
def test_cuda_where_there_is_none_is_said(butd: Run, world: World, tmp_path: Path, command: str) -> None:
    arguments: dict[str, tuple[str | Path, ...]] = {
        "detect": ("detect", world.scenes, "--weights", world.detector, "--store", tmp_path / "store"),
        "caption": ("caption", world.caption, world.picture),
        "train": ("train", "vqa", "--tables", world.scenes, "--out", tmp_path / "run"),
    }
    done = butd(*arguments[command], "--device", "cuda")
    assert_refused(done, "--device cuda", "sees no CUDA device")


def test_a_file_where_a_folder_should_be_is_one_line(butd: Run, world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = butd("store", "show", world.regions, "s5-000000", "--image", world.picture, "--out",
                tmp_path / "file" / "a.png")  # fmt: skip
    assert done.code == 1
    assert done.errors.count("\n") == 1
    assert "Not a directory" in done.errors or "File exists" in done.errors


@pytest.mark.slow
def test_in_a_process_of_its_own_a_mistake_leaves_no_traceback_either(start_butd: Butd, world: World) -> None:
    process = start_butd("caption", world.caption, "--store", world.other_regions)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert output == ""
    assert errors.startswith("butd caption: the captioner")
    assert errors.count("\n") == 1


@pytest.fixture
def photographs(world: World, tmp_path: Path) -> Path:
    """Four good pictures, one cut short, one that is text."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(4):
        shutil.copy(world.scenes / "images" / f"{number:06d}.jpg", folder / f"{number}.jpg")
    (folder / "cut.jpg").write_bytes(world.picture.read_bytes()[:200])
    (folder / "text.jpg").write_text("no picture")
    return folder


def test_unreadable_pictures_are_recorded_and_counted_and_the_job_goes_on(
    butd: Run, world: World, photographs: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store.zarr"
    command = ("detect", photographs, "--weights", world.detector, "--store", store, "--regions", "3")
    done = butd(*command)
    assert done.code == 0
    assert "6 pictures done (0 before), 12 regions" in done.output
    assert "2 pictures unreadable" in done.output
    assert done.output.splitlines()[-1] == f"the reasons: butd store problems {store}"
    assert set(RegionStore.open(store).image_ids) == {"0", "1", "2", "3"}
    # It is one job: run again, nothing is left to do, and the two still count.
    again = butd(*command)
    assert again.code == 0
    assert "0 pictures done (6 before)" in again.output
    assert "2 pictures unreadable" in again.output


def test_strict_makes_unreadable_pictures_exit_code_1_each_time(
    butd: Run, world: World, photographs: Path, tmp_path: Path
) -> None:
    command = ("detect", photographs, "--weights", world.detector, "--store", tmp_path / "s", "--strict")
    assert [butd(*command).code for _ in range(2)] == [1, 1]
    (photographs / "cut.jpg").unlink()
    (photographs / "text.jpg").unlink()
    assert butd(*command).code == 0  # none of the pictures asked for


def test_a_dry_run_says_what_would_be_done_and_does_nothing(butd: Run, world: World, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    command = ("detect", world.scenes, "--weights", world.detector, "--store", store, "--regions", "6")
    done = butd(*command, "--block-size", "16", "--dry-run")
    assert done.output.startswith("40 pictures, 0 of them done; 3 blocks to write, at most 0.")
    assert not store.exists()


def test_store_problems_gives_each_picture_with_its_reason(
    butd: Run, world: World, photographs: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store.zarr"
    butd("detect", photographs, "--weights", world.detector, "--store", store)
    rows = json.loads(butd("store", "problems", store, "--json").output)
    assert {row["image_id"]: row["path"] for row in rows} == {
        name: str(photographs / f"{name}.jpg") for name in ("cut", "text")
    }
    assert all(row["reason"] for row in rows)
    text = butd("store", "problems", store).output.splitlines()
    assert len(text) == 3
    assert text[-1] == "2 pictures could not be read"
    assert butd("store", "problems", world.regions).output == "0 pictures could not be read\n"


def test_store_info_says_what_is_in_it_and_how_it_was_made(butd: Run, world: World) -> None:
    facts = json.loads(butd("store", "info", world.regions, "--json").output)
    store = RegionStore.open(world.regions)
    assert (facts["pictures"], facts["regions"], facts["regions a picture (k)"]) == (40, 240, "6")
    assert facts["boxes"] == "proposal"
    assert facts["detector's fingerprint"] == store.metadata.detector["fingerprint"]
    assert facts["features' fingerprint"] == store.features_fingerprint
    assert tuple(facts["object_names"]) == store.metadata.object_names
    assert facts["bytes"] == sum(f.stat().st_size for f in world.regions.glob("*/c.*"))
    lines = butd("store", "info", world.regions).output.splitlines()
    assert any(line.split() == ["pictures", "40"] for line in lines)


def test_store_verify_tells_whole_from_damaged(butd: Run, world: World, tmp_path: Path) -> None:
    whole = butd("store", "verify", world.regions, "--full")
    assert whole.code == 0
    assert "whole; 40 pictures, 240 regions" in whole.output
    damaged = shutil.copytree(world.regions, tmp_path / "damaged.zarr")
    shard = max((damaged / "features").rglob("*"), key=lambda file: file.stat().st_size * file.is_file())
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    done = butd("store", "verify", damaged, "--full")
    assert done.code == 1
    assert "features" in done.output
    assert "damaged" in done.output
    report = json.loads(butd("store", "verify", damaged, "--full", "--json").output)
    assert report["ok"] is False
    assert any("features" in finding for finding in report["findings"])


def test_store_show_lists_and_draws_a_pictures_regions(butd: Run, world: World, tmp_path: Path) -> None:
    drawn = tmp_path / "new" / "regions.png"
    done = butd("store", "show", world.regions, "s5-000000", "--image", world.picture, "--out", drawn)
    lines = done.output.splitlines()
    assert lines[0] == "s5-000000: 64 x 64 pixels, 6 regions"
    assert len(lines) == 8
    first = RegionStore.open(world.regions).image("s5-000000").boxes[0]
    assert [float(value) for value in lines[1].split()[1:5]] == pytest.approx(first.tolist(), abs=0.06)
    with Image.open(drawn) as picture:
        assert min(picture.size) == 384
    other = tmp_path / "other.png"
    Image.new("RGB", (30, 20)).save(other)
    refused = butd("store", "show", world.regions, "s5-000000", "--image", other)
    assert refused.code == 2
    assert "30 x 20 pixels" in refused.errors


def test_caption_describes_files_and_stores_alike(butd: Run, world: World, tmp_path: Path) -> None:
    of_file = butd("caption", world.caption, world.picture, "--draw", tmp_path / "drawn", "--beam-size", "1")
    of_store = butd(
        "caption", world.caption, "--store", world.regions, "--ids", "s5-000000", "--beam-size", "1"
    )
    assert of_file.output.partition(": ")[2] == of_store.output.partition(": ")[2]
    assert (tmp_path / "drawn" / "000000.png").is_file()
    line = json.loads(butd("caption", world.caption, world.picture, "--json").output)
    assert line["image_id"] == "000000"
    assert " ".join(word["word"] for word in line["words"]) == line["caption"]
    for word in line["words"]:
        assert sum(word["attention"]) == pytest.approx(1, abs=1e-3)


def test_answer_gives_the_best_answers_and_the_regions_behind_them(
    butd: Run, world: World, tmp_path: Path
) -> None:
    command = ("answer", world.vqa, "how many cups are there?", world.picture)
    line = json.loads(butd(*command, "--best", "3", "--json", "--draw", tmp_path).output)
    scores = [answer["score"] for answer in line["answers"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    weights = [region["weight"] for region in line["regions"]]
    assert weights == sorted(weights, reverse=True)
    assert (tmp_path / "000000.png").is_file()
    text = butd(*command).output
    assert text.startswith(f"000000: {line['answers'][0]['answer']} ")
    assert text.count("unnormalised") == 5
    blind = butd("answer", world.vqa_blind, "how many?", "--store", world.regions, "--ids", "s5-000000")
    assert blind.code == 0
    assert "unnormalised" not in blind.output


def test_evaluate_writes_the_report_and_prints_each_score(butd: Run, world: World, tmp_path: Path) -> None:
    done = butd("evaluate", world.vqa_blind, "--tables", world.scenes, "--split", "val", "--out", tmp_path)
    assert done.code == 0
    assert done.output.splitlines()[-1] == f"report: {tmp_path / 'report.html'}"
    report = json.loads((tmp_path / "report.json").read_text())
    accuracy = report["vqa"]["question_only"]["accuracy"]
    assert f"vqa question_only: accuracy {accuracy:.3f}" in done.output
    assert (tmp_path / "report.md").is_file()


def test_report_and_runs_say_where_and_what(butd: Run, world: World, scores: Scores, tmp_path: Path) -> None:
    folder = shutil.copytree(scores.folder, tmp_path / "scores")
    assert str(folder / "report.html") in butd("report", folder).output
    rows = json.loads(butd("runs", world.runs, "--json").output)
    assert {row["name"]: row["status"] for row in rows} == {
        run.name: "finished" for run in world.runs.iterdir()
    }
    assert "vqa-paper" in butd("runs", world.runs).output


def test_scenes_and_train_say_what_they_made_and_that_it_is_there(butd: Run, tmp_path: Path) -> None:
    scenes = ("scenes", tmp_path / "scenes", "--images", "6", "--size", "64", "--num-workers", "1",
              "--splits", "train=.5,val=.5")  # fmt: skip
    assert "6 pictures (3 train, 3 val)" in butd(*scenes).output
    assert "were there already" in butd(*scenes).output
    train = ("train", "vqa", "--tables", tmp_path / "scenes", "--out", tmp_path / "run",
             "--config", "vqa-question-only", "--set", "training.epochs=1", "--device", "cpu",
             "--set", "training.num_threads=1", "--seed", "4", "--batch-size", "8")  # fmt: skip
    done = butd(*train)
    assert done.code == 0
    assert done.output.startswith("finished after ")
    assert str(find_model_dir(tmp_path / "run")) in done.output
    assert "finished before" in butd(*train).output


def test_a_whole_split_is_answered_for_the_official_server(butd: Run, world: World, tmp_path: Path) -> None:
    results = tmp_path / "new" / "answers.json"
    command = ("answer", world.vqa, "--tables", world.scenes, "--split", "test", "--results", results)
    done = butd(*command, "--store", world.regions)
    assert done.code == 0, done
    rows = json.loads(results.read_text())
    asked = read_table(world.scenes, "questions")
    assert {str(row["question_id"]) for row in rows} == set(asked[asked["split"] == "test"]["question_id"])
    assert f"answers to {len(rows)} questions" in done.output
    assert_refused(butd(*command), "give a store")
    # other.zarr has the validation part only
    assert_refused(butd(*command, "--store", world.other_regions), "trained on features")
