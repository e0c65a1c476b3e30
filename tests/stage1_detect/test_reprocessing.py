"""The same command again: what is new, what has changed, what was quarantined; and a refreshed store."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1_detect.config import SelectionConfig
from stage1_detect.jobs import JobConfig, JobSummary, detect_to_store, plan_job
from stage1_detect.refresh import begin_refreshed_store
from stage1_detect.sources import find_images
from stage1_detect.spec import ExtractorSpec
from stage1_detect.trial import seconds_per_picture
from store_schema.errors import StoreNotFoundError
from store_schema.reader import RegionStore
from store_schema.verify import verify

CONFIG = JobConfig(scheduler="sync", block_size=3, batch_size=4)


@pytest.fixture
def spec(detector_dir: Path) -> ExtractorSpec:
    return ExtractorSpec(weights=str(detector_dir), selection=SelectionConfig(min_regions=4, max_regions=8))


@pytest.fixture
def pictures(tmp_path: Path, draw_pictures: Callable[..., list[Path]]) -> Path:
    """Eight pictures, the third of which is none."""
    draw_pictures(tmp_path / "pictures", 8)
    (tmp_path / "pictures/002.png").write_bytes(b"no picture")
    return tmp_path / "pictures"


def detect(pictures: Path, store: Path, spec: ExtractorSpec, **changes: bool) -> JobSummary:
    return detect_to_store(find_images(pictures), store, spec, replace(CONFIG, **changes))  # type: ignore[arg-type]


def change(path: Path, colour: str = "red") -> None:
    Image.new("RGB", (64, 64), colour).save(path)


def test_a_changed_picture_is_named_and_the_store_keeps_the_old(
    tmp_path: Path, pictures: Path, spec: ExtractorSpec
) -> None:
    detect(pictures, tmp_path / "store", spec)
    before = RegionStore.open(tmp_path / "store").fingerprint
    change(pictures / "004.png")
    summary = detect(pictures, tmp_path / "store", spec)
    assert summary.processed == 0
    assert list(summary.changed) == ["004"]
    assert "bytes when it was read" in summary.changed["004"]
    assert RegionStore.open(tmp_path / "store").fingerprint == before


def test_a_change_of_the_same_size_is_seen_and_a_mere_touch_is_none(
    tmp_path: Path, pictures: Path, spec: ExtractorSpec
) -> None:
    detect(pictures, tmp_path / "store", spec)
    os.utime(pictures / "001.png", ns=(1, 1))
    content = bytearray((pictures / "005.png").read_bytes())
    content[-20] ^= 1
    (pictures / "005.png").write_bytes(content)
    assert detect(pictures, tmp_path / "store", spec).changed == {
        "005": "other content than when it was read"
    }


def test_a_quarantined_picture_is_tried_again_once_its_file_has_changed(
    tmp_path: Path, pictures: Path, spec: ExtractorSpec
) -> None:
    store = tmp_path / "store"
    detect(pictures, store, spec)
    assert detect(pictures, store, spec).processed == 0
    change(pictures / "002.png")
    assert plan_job(find_images(pictures), store, spec, CONFIG).retried == 1
    summary = detect(pictures, store, spec)
    assert (summary.processed, summary.retried, summary.changed) == (1, 1, {})
    assert RegionStore.open(store).problems() == []
    assert "002" in RegionStore.open(store)
    assert verify(store, full=True).ok
    assert detect(pictures, store, spec).processed == 0


def test_all_quarantined_pictures_are_tried_again_when_asked(
    tmp_path: Path, pictures: Path, spec: ExtractorSpec
) -> None:
    store = tmp_path / "store"
    detect(pictures, store, spec)
    summary = detect(pictures, store, spec, retry_problems=True)
    assert (summary.processed, summary.retried) == (1, 1)
    assert [problem.image_id for problem in RegionStore.open(store).problems()] == ["002"]


def test_a_picture_that_could_not_be_opened_is_tried_again_once_it_can(
    tmp_path: Path, pictures: Path, spec: ExtractorSpec
) -> None:
    (pictures / "009.png").symlink_to(tmp_path / "elsewhere.png")
    detect(pictures, tmp_path / "store", spec)
    change(tmp_path / "elsewhere.png")
    assert detect(pictures, tmp_path / "store", spec).retried == 1
    assert "009" in RegionStore.open(tmp_path / "store")


def test_a_refreshed_store_has_the_changed_pictures_anew_and_links_the_others(
    tmp_path: Path, pictures: Path, spec: ExtractorSpec
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    detect(pictures, old, spec)
    change(pictures / "007.png", "blue")
    assert begin_refreshed_store(find_images(pictures), old, new) == 1
    assert begin_refreshed_store(find_images(pictures), old, new) == 1  # a run that was stopped goes on
    summary = detect(pictures, new, spec)
    assert (summary.processed, summary.changed) == (1, {})
    shutil.rmtree(old)  # links do not mind
    whole = tmp_path / "whole"
    detect(pictures, whole, spec)
    ours, expected = RegionStore.open(new), RegionStore.open(whole)
    assert set(ours.image_ids) == set(expected.image_ids)
    assert [p.image_id for p in ours.problems()] == ["002"]
    for image_id in expected.image_ids:
        np.testing.assert_array_equal(ours.image(image_id).features, expected.image(image_id).features)
    assert verify(new, full=True).ok


def test_a_refresh_needs_the_old_store(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"no region store at .*gone"):
        begin_refreshed_store(find_images(pictures), tmp_path / "gone", tmp_path / "new")


def test_what_was_done_to_a_file_is_noted_in_the_store(tmp_path: Path, spec: ExtractorSpec) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    image = Image.effect_noise((80, 48), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    image.save(folder / "plain.jpg")
    image.save(folder / "moving.gif", save_all=True, append_images=[image.rotate(90)])
    detect(folder, tmp_path / "store", spec)
    store = RegionStore.open(tmp_path / "store")
    assert store.notes() == {"turned": ("exif_turned",), "moving": ("first_frame",)}
    turned = store.image("turned")
    assert (turned.width, turned.height) == (48, 80)


def test_extreme_shapes_get_regions_inside_the_picture(tmp_path: Path, spec: ExtractorSpec) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for width, height in ((1, 1), (3, 4000), (4000, 3)):
        Image.effect_noise((width, height), 60).save(folder / f"{width}x{height}.png")
    detect(folder, tmp_path / "store", spec)
    store = RegionStore.open(tmp_path / "store")
    assert store.problems() == []
    for image_id in store.image_ids:
        record = store.image(image_id)
        assert (record.boxes[:, 2:] <= (record.width, record.height)).all()


def test_a_trial_times_readable_pictures_and_says_where_there_are_none(
    pictures: Path, spec: ExtractorSpec
) -> None:
    sources = find_images(pictures)
    seconds = seconds_per_picture(sources, spec, torch_threads=1, batch_size=4)
    assert seconds is not None
    assert seconds > 0
    assert seconds_per_picture(sources[2:3], spec, torch_threads=1, batch_size=4) is None
