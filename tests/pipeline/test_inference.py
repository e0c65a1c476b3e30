"""New pictures for a trained model: from a store or from files, the same regions either way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.inference import FilePictures, Pictures, StorePictures, inputs_of
from stage2_models.caption_inference import LoadedCaptioner, load_captioner
from store_schema.errors import InputNotFoundError, StoreMismatchError, UsageError
from store_schema.reader import RegionStore
from tests.pipeline.conftest import World

Inputs = Callable[..., StorePictures | FilePictures]


@pytest.fixture(scope="module")
def captioner(world: World) -> LoadedCaptioner:
    return load_captioner(world.caption)


@pytest.fixture
def inputs(captioner: LoadedCaptioner) -> Inputs:
    def given(*images: Path, **options: Any) -> StorePictures | FilePictures:
        nothing = {"store": None, "ids": None, "weights": None, "boxes": None, "device": "cpu"}
        return inputs_of(captioner.info, captioner.check_store, images=images, **(nothing | options))

    return given


@pytest.fixture(scope="module")
def photographs(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the scenes as somebody's own folder."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("000002", "000000", "000001"):
        (folder / f"{name}.jpg").write_bytes((world.scenes / "images" / f"{name}.jpg").read_bytes())
    return folder


def test_a_stores_pictures_come_in_order_in_batches(world: World, inputs: Inputs) -> None:
    store = RegionStore.open(world.regions)
    batches = list(inputs(store=world.regions).batches(size=15))
    assert [len(batch.image_ids) for batch in batches] == [15, 15, 10]
    assert [i for batch in batches for i in batch.image_ids] == list(store.image_ids)
    for image_id, features in zip(batches[2].image_ids, batches[2].regions.features, strict=True):
        np.testing.assert_array_equal(features.numpy(), store.image(image_id).features)


def test_named_pictures_of_a_store_come_as_named(world: World, inputs: Inputs) -> None:
    (batch,) = inputs(store=world.regions, ids=["s5-000007", "s5-000002"]).batches(size=50)
    assert batch.image_ids == ("s5-000007", "s5-000002")
    assert batch.paths == ()


def test_files_get_the_regions_that_the_store_has_of_them(
    world: World, inputs: Inputs, photographs: Path
) -> None:
    batches = list(inputs(photographs).batches(size=2))
    assert [batch.image_ids for batch in batches] == [("000000", "000001"), ("000002",)]
    store = RegionStore.open(world.regions)
    for batch in batches:
        for place, image_id in enumerate(batch.image_ids):
            stored = store.image(f"s5-{image_id}")
            # Two pictures in a batch and eight: sums of float32 differ in the last bit, and now and then round apart.
            np.testing.assert_array_max_ulp(batch.regions.features[place].numpy(), stored.features, 1)
            np.testing.assert_array_equal(batch.regions.boxes[place].numpy(), stored.boxes)


def test_a_picture_gets_the_same_caption_from_a_file_and_from_the_store(
    world: World, inputs: Inputs, photographs: Path, captioner: LoadedCaptioner
) -> None:
    (files,) = inputs(photographs).batches(size=9)
    ids = [f"s5-{image_id}" for image_id in files.image_ids]
    (stored,) = inputs(store=world.regions, ids=ids).batches(size=9)
    texts = [[c.text for c in captioner.caption(batch.regions)] for batch in (files, stored)]
    assert texts[0] == texts[1]


def test_store_and_files_exclude_each_other_and_one_is_needed(world: World, inputs: Inputs) -> None:
    with pytest.raises(UsageError, match="not both"):
        inputs(world.picture, store=world.regions)
    with pytest.raises(UsageError, match="name picture files, or a store with --store"):
        inputs()
    with pytest.raises(UsageError, match="--ids names pictures of a store"):
        inputs(world.picture, ids=["s5-000000"])
    with pytest.raises(InputNotFoundError, match=r"no-such\.jpg"):
        inputs(Path("no-such.jpg"))


def test_a_store_of_another_detector_is_refused_with_both_fingerprints(world: World, inputs: Inputs) -> None:
    theirs = RegionStore.open(world.other_regions).features_fingerprint
    ours = RegionStore.open(world.regions).features_fingerprint
    with pytest.raises(StoreMismatchError, match=rf"{ours}.*{theirs}"):
        inputs(store=world.other_regions)


def test_drawings_are_saved_under_the_pictures_id(inputs: Inputs, photographs: Path, tmp_path: Path) -> None:
    (batch,) = inputs(photographs / "000001.jpg").batches(size=1)
    assert isinstance(batch, Pictures)
    num_regions = int(batch.regions.num_regions[0])
    # A model may pad its attention to more regions than this picture has.
    attention = torch.rand(3, num_regions + 2).softmax(1).numpy()
    batch.draw_words(0, ["a", "red", "cup"], attention, tmp_path / "words")
    batch.draw_answer(0, attention[0, :num_regions], attention[0, :num_regions], tmp_path / "answers")
    for folder in ("words", "answers"):
        with Image.open(tmp_path / folder / "000001.png") as picture:
            assert picture.width > 64
