"""From what a model or a store says of its features, the very extractor is built again, or refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.extraction import extract_records, make_store, spec_named_by
from stage1_detect.spec import ClassifierConfig, ExtractorSpec, GivenBoxesConfig
from store_schema.artifacts import find_model_dir, read_model_json
from store_schema.errors import (
    CheckpointError,
    ImageReadError,
    InputNotFoundError,
    StoreMismatchError,
    UsageError,
)
from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from tests.pipeline.conftest import World, regions_spec


def info_of(run: Path) -> dict[str, Any]:
    return read_model_json(find_model_dir(run))


def as_info(metadata: StoreMetadata) -> dict[str, Any]:
    """As a model of stage two would keep it: through JSON."""
    info = {
        "detector": dict(metadata.detector),
        "selection": dict(metadata.selection),
        "box_source": metadata.box_source,
    }
    plain: dict[str, Any] = json.loads(json.dumps(info))
    return plain


def test_the_extractor_of_a_model_makes_the_features_that_it_was_trained_on(world: World) -> None:
    for run, store in ((world.caption, world.regions), (world.vqa_grid, world.grid)):
        metadata = spec_named_by(info_of(run)).store_metadata()
        assert metadata.features_fingerprint() == RegionStore.open(store).features_fingerprint
        assert metadata.selection == RegionStore.open(store).metadata.selection


@pytest.mark.parametrize("kind", ["regions", "grid"])
def test_records_without_a_store_equal_the_stores(world: World, kind: str) -> None:
    store = RegionStore.open(getattr(world, kind))
    info = info_of(world.caption if kind == "regions" else world.caption_grid)
    ids = ["s5-000003", "s5-000000"]
    paths = [world.scenes / "images" / f"{i.removeprefix('s5-')}.jpg" for i in ids]
    for record in extract_records(paths, ids, spec_named_by(info)):
        stored = store.image(record.image_id)
        assert (record.width, record.height) == (64, 64)
        np.testing.assert_array_equal(record.boxes, stored.boxes)
        np.testing.assert_array_max_ulp(
            record.features.astype(np.float16), stored.features, 1
        )  # other batches
    assert [record.image_id for record in extract_records(paths, ids, spec_named_by(info))] == ids


def test_an_unreadable_picture_is_named(world: World, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(world.picture.read_bytes()[:300])
    with pytest.raises(ImageReadError, match=r"broken\.jpg"):
        extract_records([broken], ["broken"], regions_spec(world.detector))


def test_a_moved_detector_is_taken_by_its_new_path_and_another_one_refused(
    world: World, tmp_path: Path
) -> None:
    info = info_of(world.caption)
    moved = shutil.copytree(find_model_dir(world.detector), tmp_path / "moved")
    info["detector"]["path"] = str(tmp_path / "gone")
    with pytest.raises(InputNotFoundError, match="gone"):
        spec_named_by(info)
    assert spec_named_by(info, weights=str(moved)).weights == str(moved)
    other = RegionStore.open(world.other_regions).metadata.detector["fingerprint"]
    with pytest.raises(StoreMismatchError, match=rf"{info['detector']['fingerprint']}.*{other}"):
        spec_named_by(info, weights=str(world.other_detector))


def test_a_model_that_does_not_say_where_its_detector_lies_asks_for_it(world: World) -> None:
    info = info_of(world.caption)
    del info["detector"]["path"]
    with pytest.raises(CheckpointError, match="name it with --weights"):
        spec_named_by(info)


def test_a_converted_model_that_names_no_detector_asks_for_a_store() -> None:
    info = {"task": "vqa", "feature_dim": 2048, "detector": None, "box_source": None}
    with pytest.raises(UsageError, match="does not say which detector made its features"):
        spec_named_by(info)


def test_nothing_is_extracted_for_a_model_without_regions(world: World) -> None:
    with pytest.raises(UsageError, match="sees no regions"):
        spec_named_by(info_of(world.vqa_blind))


def test_given_boxes_must_be_named_and_keep_their_settings(world: World) -> None:
    boxes = GivenBoxesConfig(path=str(world.scenes), max_regions=4, nms_thresh=0.4, whole_picture=False)
    spec = ExtractorSpec(mode="given", weights=str(find_model_dir(world.detector)), boxes=boxes)
    info = as_info(spec.store_metadata())
    with pytest.raises(UsageError, match=r"given boxes .*with --boxes"):
        spec_named_by(info)
    assert spec_named_by(info, boxes=str(world.scenes)) == spec


def test_a_classifier_is_built_again_with_what_it_does_to_pixels(tmp_path: Path) -> None:
    """Only the file's hash counts here: the network itself is not loaded."""
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"weights")
    classifier = ClassifierConfig(name="mobilenet_v2", short_side=96, long_side=192)
    spec = ExtractorSpec(mode="grid", weights=str(weights), cells=(2, 2), classifier=classifier)
    assert spec_named_by(as_info(spec.store_metadata())) == spec
    weights.write_bytes(b"other weights")
    changed = as_info(spec.store_metadata())
    weights.write_bytes(b"weights")
    with pytest.raises(StoreMismatchError, match="are "):
        spec_named_by(changed)


def test_a_store_of_one_split_is_made_once(world: World, tmp_path: Path) -> None:
    spec = regions_spec(world.detector)
    first = make_store(world.scenes, tmp_path / "val.zarr", spec, split="val")
    assert (first.processed, first.problems) == (8, ())
    again = make_store(world.scenes, tmp_path / "val.zarr", spec, split="val")
    assert (again.processed, again.done_before) == (0, 8)
