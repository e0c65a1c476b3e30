"""What a store lacks of a data set, and whether its detector saw the pictures, before a training starts."""

import json
from pathlib import Path

from store_schema.artifacts import model_fingerprint
from store_schema.coverage import (
    TrainedOn,
    coverage,
    coverage_by_split,
    detection_tables_fingerprint,
    trained_on,
)
from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from store_schema.tables import write_table
from tests.store_schema import tiny
from tests.store_schema.tiny import BAD_ID, IDS, METADATA


def tables(folder: Path, splits: dict[str, str]) -> Path:
    rows = [
        {"image_id": i, "path": f"{n}.jpg", "width": 100, "height": 100, "split": split, "coco_id": n}
        for n, (i, split) in enumerate(splits.items())
    ]
    write_table(folder, "images", rows)
    return folder


def test_each_picture_stands_in_one_place(fixed_path: Path) -> None:
    store = RegionStore.open(fixed_path)
    empty = [image_id for image_id in store.image_ids if store.num_regions(store.rows([image_id]))[0] == 0]
    assert empty
    found = coverage(store, [*IDS, "unknown:1", "unknown:2", "unknown:1"])
    assert found.covered == tuple(i for i in IDS if i != BAD_ID and i not in empty)
    assert found.empty == tuple(i for i in IDS if i in empty)
    assert found.quarantined == {BAD_ID: "cut short"}
    assert found.absent == ("unknown:1", "unknown:2")
    assert (found.num_images, found.num_missing) == (len(IDS) + 2, 3)
    assert found.why_missing() == (
        f"2 not extracted (such as unknown:1, unknown:2), 1 quarantined (such as {BAD_ID}: cut short)"
    )


def test_splits_are_told_apart(fixed_path: Path, tmp_path: Path) -> None:
    splits = {IDS[0]: "train", IDS[1]: "val", "unknown": "val"}
    found = coverage_by_split(RegionStore.open(fixed_path), tables(tmp_path, splits))
    assert {split: (one.num_images, one.num_missing) for split, one in found.items()} == {
        "train": (1, 0),
        "val": (2, 1),
    }


def store_of(model: Path, path: Path, trained: dict[str, object] | None) -> RegionStore:
    """A store of a detector that says what it was trained on."""
    model.mkdir()
    (model / "model.json").write_text(json.dumps({"task": "detector", "trained_on": trained}))
    (model / "model.safetensors").write_bytes(b"weights")
    content = METADATA.to_json() | {
        "detector": {"name": "d", "fingerprint": model_fingerprint(model), "path": str(model)}
    }
    return RegionStore.open(tiny.write_store(path, StoreMetadata.from_json(content, "test")))


def test_training_pictures_are_known_by_the_same_tables(tmp_path: Path) -> None:
    folder = tables(tmp_path / "tables", {IDS[0]: "train", IDS[1]: "val"})
    facts: dict[str, object] = {
        "split": "train",
        "tables": detection_tables_fingerprint(folder),
        "coco_ids": [],
    }
    store = store_of(tmp_path / "model", tmp_path / "store", facts)
    assert trained_on(store, folder) == TrainedOn(
        how="trained on these tables", image_ids=frozenset({IDS[0]})
    )


def test_training_pictures_are_known_by_coco_ids(tmp_path: Path) -> None:
    folder = tables(tmp_path / "tables", {IDS[0]: "train", IDS[1]: "val", IDS[2]: "val"})
    store = store_of(tmp_path / "model", tmp_path / "store", {"tables": "others", "coco_ids": [2, 999]})
    assert trained_on(store, folder) == TrainedOn(how="compared by COCO ids", image_ids=frozenset({IDS[2]}))


def test_what_cannot_be_known_says_why(fixed_path: Path, tmp_path: Path) -> None:
    folder = tables(tmp_path / "tables", {IDS[0]: "train"})
    store = store_of(tmp_path / "model", tmp_path / "store", {"tables": "others", "coco_ids": []})
    silent = store_of(tmp_path / "silent", tmp_path / "silent-store", None)
    cases = {
        "does not say where": trained_on(RegionStore.open(fixed_path), folder),
        "other tables": trained_on(store, folder),
        "does not say what": trained_on(silent, folder),
        "is not the store's detector": trained_on(silent, folder, tmp_path / "model"),
        "no longer at": trained_on(store, folder, tmp_path / "gone"),
    }
    for words, found in cases.items():
        assert found.image_ids is None
        assert words in found.how
