"""The captioning task on small real tables and a real store: learning, order, what is left out, use afterwards."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stage2_models.caption_data import CaptionBatch, CaptionDataConfig, read_captions
from stage2_models.caption_inference import caption_regions, load_captioner
from stage2_models.caption_task import CaptionTask, build_caption_task
from stage2_models.captioner import CaptionerConfig
from store_schema.errors import CheckpointError, ConfigError, StoreMismatchError, UsageError
from store_schema.reader import RegionStore
from tests.stage2_models.caption_world import (
    CPU,
    DATA,
    IMAGE_IDS,
    MODEL,
    World,
    write_store,
    write_world,
)

if TYPE_CHECKING:
    from pipeline.training.task import Task


@pytest.fixture
def world(tmp_path: Path) -> World:
    return write_world(tmp_path)


def _task(world: World, model: CaptionerConfig = MODEL, data: CaptionDataConfig = DATA) -> CaptionTask:
    torch.manual_seed(0)
    return build_caption_task(world.tables, world.store, model=model, data=data, device=CPU)


def _learn(task: CaptionTask, epochs: int) -> list[float]:
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-2)
    losses = []
    for epoch in range(epochs):
        for batch in task.batches(epoch, 0):
            total, count, _ = task.loss(batch, step=0, epoch=epoch)
            optimizer.zero_grad()
            (total / count).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(total.item() / count)
    return losses


def _save(task: CaptionTask, folder: Path) -> Path:
    folder.mkdir()
    save_file(task.model.state_dict(), folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(task.describe()))
    return folder


def _contents(batches: Iterator[CaptionBatch]) -> list[tuple[list[int], list[int]]]:
    return [(batch.indices.tolist(), batch.tokens.targets.tolist()) for batch in batches]


def test_it_is_a_task_that_the_trainer_knows(world: World) -> None:
    task: Task[CaptionBatch] = _task(world)
    assert task.num_batches() == 2
    assert set(task.identity()) == {"model", "vocabulary", "store"}
    assert json.loads(json.dumps(task.describe()))["task"] == "caption"


def test_a_checkpoint_may_go_on_with_another_dropout_but_not_with_another_size(world: World) -> None:
    identity = _task(world).identity()
    assert _task(world, replace(MODEL, dropout=0.5)).identity() == identity
    assert _task(world, replace(MODEL, hidden_dim=31)).identity() != identity


def test_it_learns_to_say_what_is_there(world: World) -> None:
    """The first eight pictures lack some pairs of the last four: they must be put together."""
    task = _task(world)
    before = task.evaluate()
    losses = _learn(task, 30)
    after = task.evaluate()
    assert losses[-1] < 0.5 * losses[0]
    assert after["cider_d"] > before["cider_d"] + 1
    assert after["token_loss"] < before["token_loss"]
    assert {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"} <= after.keys()
    assert task.model.training


def test_a_batch_in_the_middle_is_the_same_when_started_there(world: World) -> None:
    task = _task(world)
    assert _contents(task.batches(3, 1)) == _contents(task.batches(3, 0))[1:]
    assert _contents(task.batches(3, 0)) != _contents(task.batches(4, 0))


def test_batch_ids_and_loss_are_those_of_the_pictures(world: World) -> None:
    task = _task(world)
    batch = next(task.batches(0, 0))
    ids = task.batch_ids(batch)
    assert len(set(ids)) == 5
    told = [sum(len(words) + 1 for words in task.train.captions.words[index]) for index in batch.indices]
    _, count, parts = task.loss(batch.to(CPU), step=0, epoch=0)
    assert count == sum(told)
    assert 0 <= parts["token_accuracy"].item() <= 1


def test_more_captions_than_read_at_once_take_turns(world: World) -> None:
    task = _task(world, data=replace(DATA, captions_per_image=1))
    indices = np.array([0])
    read = [
        task.vocabulary.decode(
            task.train.tokens(indices, task.vocabulary, captions_per_image=1, epoch=epoch).targets.tolist()
        )
        for epoch in range(3)
    ]
    assert read[0] == ["a", "red", "cube"]
    assert read[1] == ["there", "is", "a", "red", "cube"]
    assert read[2] == read[0]


def test_pictures_that_the_store_lacks_are_left_out_and_named(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = RegionStore.open(write_store(tmp_path / "partial", IMAGE_IDS[2:]))
    with caplog.at_level(logging.WARNING):
        captions = read_captions(world.tables, "train", store, max_missing_share=0.5)
    assert captions.image_ids == tuple(IMAGE_IDS[2:8])
    assert "no regions of 2 of the 8 pictures" in caplog.text
    assert "p0, p1" in caplog.text
    with pytest.raises(UsageError, match=r"2 of the 8 pictures .* more than data.max_missing_share 0.1"):
        read_captions(world.tables, "train", store, max_missing_share=0.1)


def test_a_split_without_captions_is_named(world: World) -> None:
    with pytest.raises(UsageError, match=r"no captions with split 'test'; there are \['train', 'val'\]"):
        _task(world, data=replace(DATA, eval_split="test"))


def test_evaluation_may_be_of_fewer_pictures(world: World) -> None:
    assert len(_task(world, data=replace(DATA, max_eval_images=2)).held_out) == 2


def test_a_saved_captioner_says_the_same_after_loading(world: World, tmp_path: Path) -> None:
    task = _task(world)
    _learn(task, 5)
    loaded = load_captioner(_save(task, tmp_path / "model"))
    store = RegionStore.open(world.store)
    captions = caption_regions(loaded, store, IMAGE_IDS[8:], loaded.decoding(beam_size=1), batch_size=3)
    evaluated = loaded.evaluate(world.tables, store, "val", decoding=loaded.decoding(beam_size=1))
    assert [caption.words for caption in captions] == [
        evaluated.captions[image_id].words for image_id in IMAGE_IDS[8:]
    ]
    assert evaluated.metrics() == pytest.approx(dict(task.evaluate()))
    assert captions[0].attention.shape[0] == len(captions[0].words)
    assert caption_regions(loaded, store, []) == []


def test_features_of_another_detector_are_refused_with_both_named(world: World, tmp_path: Path) -> None:
    loaded = load_captioner(_save(_task(world), tmp_path / "model"))
    other = RegionStore.open(write_store(tmp_path / "other", IMAGE_IDS, detector="d2"))
    own = RegionStore.open(world.store).features_fingerprint
    with pytest.raises(StoreMismatchError, match=f"{own}.*{other.features_fingerprint}"):
        caption_regions(loaded, other, IMAGE_IDS[:1])


def test_foreign_and_broken_models_are_refused(world: World, tmp_path: Path) -> None:
    folder = _save(_task(world), tmp_path / "model")
    content = json.loads((folder / "model.json").read_text())

    def rewritten(**changes: object) -> Path:
        (folder / "model.json").write_text(json.dumps(content | changes))
        return folder

    with pytest.raises(CheckpointError, match="task 'vqa'; describing pictures needs one of task 'caption'"):
        load_captioner(rewritten(task="vqa"))
    with pytest.raises(CheckpointError, match="do not make a captioner"):
        load_captioner(rewritten(feature_dim=3))
    del content["detector"]
    with pytest.raises(CheckpointError, match="lacks 'detector'"):
        load_captioner(rewritten())


def test_wrong_data_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="max_length must be at least 1, it is 0"):
        CaptionDataConfig(max_length=0)
    with pytest.raises(ConfigError, match="max_missing_share must be in"):
        CaptionDataConfig(max_missing_share=1.0)
