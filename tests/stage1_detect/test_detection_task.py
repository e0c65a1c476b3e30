import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from stage1_detect.config import DetectorConfig
from stage1_detect.detection_metrics import evaluate_detector
from stage1_detect.detection_task import DetectionDataConfig, DetectionTask, build_detection_task
from stage1_detect.detector import load_detector
from stage1_detect.losses import DetectionBatch
from store_schema.errors import ConfigError, UsageError
from store_schema.tables import read_table, write_table

CONFIG = DetectorConfig(
    widths=(8, 12, 16, 16), short_side=64, long_side=64, region_channels=12, hidden_dim=48, rpn_channels=16
)
DATA = DetectionDataConfig(batch_size=4, seed=3)


def build(tables: Path, **changes: Any) -> DetectionTask:
    return build_detection_task(tables, config=CONFIG, data=replace(DATA, **changes))


def same(a: DetectionBatch, b: DetectionBatch) -> bool:
    names = ("images", "boxes", "class_ids", "crowd", "attributes")
    return a.image_ids == b.image_ids and all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


def train(task: DetectionTask, steps: int, lr: float = 3e-3) -> list[float]:
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(task.model.train().parameters(), lr=lr)
    losses: list[float] = []
    epoch = 0
    while True:
        for batch in task.batches(epoch, 0):
            if len(losses) == steps:
                return losses
            loss, count, _ = task.loss(batch, step=len(losses), epoch=epoch)
            (loss / count).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()) / count)
        epoch += 1


def test_an_epoch_shows_each_picture_once_in_an_order_of_its_own(detection_tables: Path) -> None:
    task = build(detection_tables)
    epochs = [[i for batch in task.batches(epoch, 0) for i in task.batch_ids(batch)] for epoch in (0, 1)]
    assert task.num_batches() == 6
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(task.train.image_ids)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("changes", [{"num_workers": 0}, {"num_workers": 3}, {"cache_megabytes": 0.0}])
def test_batches_do_not_depend_on_how_they_are_read(detection_tables: Path, changes: dict[str, Any]) -> None:
    expected = list(build(detection_tables).batches(2, 0))
    batches = list(build(detection_tables, **changes).batches(2, 0))
    assert all(same(a, b) for a, b in zip(batches, expected, strict=True))


def test_an_epoch_can_be_entered_in_the_middle(detection_tables: Path) -> None:
    task = build(detection_tables)
    whole = list(task.batches(1, 0))
    assert all(same(a, b) for a, b in zip(task.batches(1, 4), whole[4:], strict=True))


def test_several_scales_are_drawn_batch_by_batch_and_boxes_follow(detection_tables: Path) -> None:
    plain = list(build(detection_tables, num_workers=0).batches(1, 0))
    task = build(detection_tables, short_sides=(32, 48, 64))
    scaled = list(task.batches(1, 0))
    sides = [batch.images.shape[2] for batch in scaled]
    assert len(set(sides)) > 1
    assert set(sides) <= {32, 48, 64}
    for side, batch, original in zip(sides, scaled, plain, strict=True):
        assert batch.image_ids == original.image_ids
        assert batch.sizes == ((side, side),) * 4
        assert torch.allclose(batch.boxes, original.boxes * (side / 64))
    assert all(same(a, b) for a, b in zip(task.batches(1, 3), scaled[3:], strict=True))
    assert [batch.images.shape[2] for batch in task.batches(2, 0)] != sides


def test_a_short_side_above_the_long_side_is_refused(detection_tables: Path) -> None:
    with pytest.raises(ConfigError, match="short_side 65 exceeds long_side 64"):
        build(detection_tables, short_sides=(65,))
    with pytest.raises(ConfigError, match=r"data\.short_sides must be positive"):
        replace(DATA, short_sides=(0,))


def test_mirroring_takes_picture_and_boxes_along(detection_tables: Path) -> None:
    plain = {b.image_ids: b for b in build(detection_tables, flip=False, batch_size=1).batches(0, 0)}
    mirrored = 0
    for batch in build(detection_tables, batch_size=1).batches(0, 0):
        original = plain[batch.image_ids]
        if torch.equal(batch.images, original.images):
            assert torch.equal(batch.boxes, original.boxes)
            continue
        mirrored += 1
        assert torch.equal(batch.images, original.images.flip(3))
        assert torch.equal(batch.boxes[..., [0, 2]], 64 - original.boxes[..., [2, 0]])
        assert torch.equal(batch.boxes[..., [1, 3]], original.boxes[..., [1, 3]])
    assert 4 <= mirrored <= 20


def test_attributes_are_shared_out_among_an_objects_own(detection_tables: Path) -> None:
    for batch in build(detection_tables).batches(0, 0):
        real = batch.class_ids > 0
        assert torch.equal(batch.attributes.sum(2)[real], torch.ones(int(real.sum())))
        assert batch.attributes[~real].sum() == 0


def test_pictures_of_different_shapes_are_padded_for_training_only(
    tmp_path: Path, detection_tables: Path
) -> None:
    images = read_table(detection_tables, "images")
    write_table(tmp_path, "images", images)
    for name in ("objects", "object_attributes"):
        write_table(tmp_path, name, read_table(detection_tables, name))
    config = replace(CONFIG, short_side=32, long_side=32)
    task = build_detection_task(tmp_path, config=config, data=DATA, images_root=detection_tables)
    batch = next(task.batches(0, 0))
    assert batch.images.shape == (4, 3, 32, 32)
    objects = task.train.objects(task.train.image_ids.index(batch.image_ids[0]))
    width = (batch.boxes[0, :, 2] - batch.boxes[0, :, 0]).max()
    assert width == pytest.approx((objects.boxes[:, 2] - objects.boxes[:, 0]).max() / 2)


def test_the_same_seed_trains_to_the_same_bits(detection_tables: Path) -> None:
    first, second = (train(build(detection_tables), 4) for _ in range(2))
    assert first == second
    assert first != train(build(detection_tables, seed=4), 4)


def test_identity_tells_models_and_tables_apart(tmp_path: Path, detection_tables: Path) -> None:
    identity = build(detection_tables).identity()
    assert identity == build(detection_tables, batch_size=2).identity()
    wider = build_detection_task(
        detection_tables, config=replace(CONFIG, hidden_dim=32), data=DATA
    ).identity()
    assert wider["model"] != identity["model"]
    assert wider["tables"] == identity["tables"]
    for name in ("images", "objects"):
        write_table(tmp_path, name, read_table(detection_tables, name))
    assert build(tmp_path).identity()["tables"] != identity["tables"]


def test_the_description_says_what_was_trained_on(detection_tables: Path) -> None:
    described = build(detection_tables).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["object_names"] == ["bar", "square"]
    assert described["attribute_names"] == ["blue", "low", "red"]
    assert described["trained_on"]["num_images"] == 24
    assert described["trained_on"]["coco_ids"] == list(range(24))


def test_evaluation_leaves_the_mode_as_it_was(detection_tables: Path) -> None:
    task = build(detection_tables)
    task.model.train()
    assert task.best_metric in task.evaluate()
    assert task.model.training


def test_tables_without_objects_are_refused(tmp_path: Path, detection_tables: Path) -> None:
    write_table(tmp_path, "images", read_table(detection_tables, "images"))
    write_table(tmp_path, "objects", [])
    with pytest.raises(UsageError, match="names no object of the split 'train'"):
        build(tmp_path)
    with pytest.raises(ConfigError, match="batch_size"):
        DetectionDataConfig(batch_size=0)


@pytest.mark.slow
def test_a_detector_learns_squares_and_bars(tmp_path: Path, detection_tables: Path) -> None:
    """Trained, saved, loaded for inference, and scored on pictures it has not seen."""
    task = build(detection_tables)
    losses = train(task, 240)
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:10])
    state: dict[str, Tensor] = {k: v.contiguous() for k, v in task.model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_text(json.dumps(task.describe()))
    scores = evaluate_detector(load_detector(tmp_path), detection_tables, split="test")
    assert scores["map_50"] > 0.8
    assert scores["attribute_accuracy"] > 0.8
    assert scores["recall"] > 0.9


def test_published_detectors_of_torchvision_are_not_trained(detection_tables: Path) -> None:
    config = DetectorConfig.torchvision("fasterrcnn_resnet50_fpn")
    with pytest.raises(ConfigError, match="is not trained here"):
        build_detection_task(detection_tables, config=config, data=DetectionDataConfig())
