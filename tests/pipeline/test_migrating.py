"""The commands of docs/migrating.md, each run as it stands, on small files in the forms that other code bases use."""

import base64
import json
import pickle
import re
import shlex
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from pipeline.cli import main
from store_schema.artifacts import find_model_dir
from store_schema.reader import RegionStore
from tests.pipeline.conftest import World

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "migrating.md"
PARITY = ROOT / "tests" / "data"
DETECTORS = ("caffemodel", "bua-caffe-pth", "hf-frcnn-vg", "detectron2-c4")
"""Whole detectors: the parity tests convert them; here one of the world's stands in their place."""
SMALLER = {
    "train caption": "model.hidden_dim=16 model.embed_dim=16 model.attention_dim=16 data.min_word_count=1 "
    "losses.self_critical_from_epoch=1 training.epochs=2 training.num_threads=1 data.num_workers=0",
    "train vqa": "model.hidden_dim=16 model.embed_dim=16 training.epochs=1 data.num_workers=0 training.num_threads=1",
}
"""The page's commands train at full size: here so much of them is changed."""

SIZE = 64
NUMBERS = list(range(1, 13))


def color_of(number: int) -> str:
    return "red" if number % 2 else "blue"


def split_of(number: int) -> str:
    return "train" if number <= 8 else "val"


def name_of(number: int) -> str:
    return f"COCO_{split_of(number)}2014_{number:012d}"


def features_of(number: int) -> NDArray[np.float32]:
    return np.random.default_rng(number).random((36, 96), np.float32)


def boxes_of(number: int) -> NDArray[np.float32]:
    corner = np.random.default_rng(number).integers(0, SIZE - 10, (36, 2))
    return np.concatenate([corner, corner + 10], 1).astype(np.float32)


def write_vqa2(folder: Path) -> None:
    """The official questions: 10 a picture, so that an answer occurs nine times. No pictures."""
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        questions, annotations = [], []
        for number in (n for n in NUMBERS if split_of(n) == split):
            for place in range(10):
                asked = "is it red?" if place % 2 else "what color is it?"
                answer = color_of(number) if place % 2 == 0 else "yes" if color_of(number) == "red" else "no"
                key = {"image_id": number, "question_id": number * 100 + place}
                questions.append({**key, "question": asked})
                answers = [
                    {"answer": answer, "answer_id": each, "answer_confidence": "yes"} for each in range(1, 11)
                ]
                kinds = {
                    "question_type": "is it",
                    "answer_type": "other",
                    "multiple_choice_answer": answer,
                }
                annotations.append({**key, **kinds, "answers": answers})
        files = {
            f"v2_OpenEnded_mscoco_{split}2014_questions.json": {"questions": questions},
            f"v2_mscoco_{split}2014_annotations.json": {"annotations": annotations},
        }
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content))


def write_karpathy(data: Path) -> None:
    """dataset_coco.json, cocotalk.json, and features as make_bu_data.py leaves them."""
    images = []
    splits = ["train", "restval", "val", "test"]
    for number in NUMBERS:
        sentences = [{"raw": f"A {color_of(number)} wall, {extra}."} for extra in ("plain", "large", "flat")]
        images.append(
            {
                "filepath": f"vqa2/{split_of(number)}2014",
                "filename": f"{name_of(number)}.jpg",
                "cocoid": number,
                "split": splits[number % 4],
                "sentences": sentences,
            }
        )
    (data / "dataset_coco.json").write_text(json.dumps({"images": images}))
    talk = [
        {"id": n, "file_path": f"{name_of(n)}.jpg", "split": "train", "height": SIZE, "width": SIZE}
        for n in NUMBERS
    ]
    (data / "cocotalk.json").write_text(json.dumps({"ix_to_word": {"1": "a"}, "images": talk}))
    for name in ("cocobu_att", "cocobu_box", "cocobu_fc"):
        (data / name).mkdir()
    for number in NUMBERS:
        np.savez_compressed(data / "cocobu_att" / f"{number}.npz", feat=features_of(number))
        np.save(data / "cocobu_box" / f"{number}.npy", boxes_of(number))
        np.save(data / "cocobu_fc" / f"{number}.npy", features_of(number).mean(0))


def write_features(data: Path) -> None:
    """The same regions as a Caffe TSV, as HDF5 with its pickle, and as MMF's pairs of files."""

    def encode(array: NDArray[np.float32]) -> str:
        return base64.b64encode(array.tobytes()).decode()

    with (data / "trainval_36.tsv").open("w") as file:
        for n in NUMBERS:
            file.write(f"{n}\t{SIZE}\t{SIZE}\t36\t{encode(boxes_of(n))}\t{encode(features_of(n))}\n")
    (data / "features").mkdir()
    for number in NUMBERS:
        np.save(data / "features" / f"{name_of(number)}.npy", features_of(number))
        info = {"bbox": boxes_of(number), "num_boxes": 36, "image_width": SIZE, "image_height": SIZE}
        info |= {"objects": np.arange(36), "cls_prob": np.full((36, 1600), 0.1, np.float32)}
        np.save(data / "features" / f"{name_of(number)}_info.npy", np.array(info, object))
    with h5py.File(data / "train36.hdf5", "w") as file:
        boxes = np.stack([boxes_of(n) for n in NUMBERS])
        sides = boxes[..., 2:] - boxes[..., :2]
        file["image_features"] = np.stack([features_of(n) for n in NUMBERS])
        file["image_bb"] = boxes
        file["spatial_features"] = np.concatenate([boxes, sides], -1) / SIZE
    rows = {number: row for row, number in enumerate(NUMBERS)}
    (data / "train36_imgid2idx.pkl").write_bytes(pickle.dumps(rows, protocol=2))


@pytest.fixture
def elsewhere(tmp_path: Path, world: World) -> Path:
    """A folder with everything that the page's commands read."""
    data = tmp_path / "data"
    write_vqa2(data / "vqa2")
    write_karpathy(data)
    write_features(data)
    shutil.copytree(PARITY / "butd_vqa" / "newatt", tmp_path / "saved_models" / "exp0")
    shutil.copytree(PARITY / "self_critical_updown" / "a", tmp_path / "log_updown")
    (tmp_path / "photos").mkdir()
    for picture in sorted((world.scenes / "images").glob("*.jpg"))[:3]:
        shutil.copy(picture, tmp_path / "photos")
    shutil.copytree(find_model_dir(world.detector), tmp_path / "runs" / "vg")
    ids = [path.stem for path in (tmp_path / "photos").iterdir()]
    boxes = pd.DataFrame({"image_id": ids, "x1": 0.0, "y1": 0.0, "x2": 30.0, "y2": 40.0, "object": "thing"})
    boxes.to_parquet(tmp_path / "boxes.parquet")
    return tmp_path


def commands() -> list[list[str]]:
    """The page's commands, less those that convert whole detectors."""
    lines = re.findall(r"^    butd (.+)$", PAGE.read_text(), re.MULTILINE)
    words = [shlex.split(line) for line in lines]
    return [line for line in words if line[-1] not in DETECTORS]


@pytest.mark.timeout(900)
def test_every_command_of_the_page_does_what_it_says(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(elsewhere)
    assert len(commands()) > 20
    for words in commands():
        sets = SMALLER.get(" ".join(words[:2]), "").split()
        if "caption-updown" not in words:
            sets = [each for each in sets if "self_critical" not in each]
        code = main([*words, *(part for each in sets for part in ("--set", each))])
        assert code == 0, (words, capsys.readouterr())
    assert len(json.loads(Path("runs/vqa_results.json").read_text())) == 40
    assert len(json.loads(Path("runs/captions_results.json").read_text())) == 3
    for name in ("vqa2", "train36", "coco", "cocobu", "mmf"):
        assert len(RegionStore.open(f"runs/{name}.zarr")) == 12, name
    first = RegionStore.open("runs/vqa2.zarr").image("1")
    np.testing.assert_allclose(first.features, features_of(1), atol=1e-3)
