from dataclasses import replace
from typing import Literal

import pytest
import torch

from stage1_detect.config import DetectorConfig
from stage1_detect.detector import Detector
from stage1_detect.losses import (
    DetectionBatch,
    LossConfig,
    _match,
    _sample,
    _sample_regions,
    detection_losses,
)
from store_schema.errors import ConfigError

CONFIG = DetectorConfig(widths=(4, 8, 8, 16), short_side=64, long_side=64, region_channels=8, hidden_dim=24)


def make_batch() -> DetectionBatch:
    """Two pictures: two objects of which one has two attributes and one none; one object and a crowd."""
    torch.manual_seed(1)
    boxes = torch.tensor([[[4.0, 4, 28, 28], [30, 30, 60, 62]], [[8, 8, 40, 30], [32, 32, 64, 64]]])
    attributes = torch.zeros(2, 2, 3)
    attributes[0, 0, :2] = 0.5
    return DetectionBatch(
        images=torch.randn(2, 3, 64, 64),
        sizes=((64, 64), (64, 64)),
        boxes=boxes,
        class_ids=torch.tensor([[1, 2], [2, 0]]),
        crowd=torch.tensor([[False, False], [False, True]]),
        attributes=attributes,
        image_ids=("a", "b"),
    )


def without_objects(batch: DetectionBatch) -> DetectionBatch:
    return replace(
        batch,
        boxes=batch.boxes[:, :0],
        class_ids=batch.class_ids[:, :0],
        crowd=batch.crowd[:, :0],
        attributes=batch.attributes[:, :0],
    )


def build() -> Detector:
    torch.manual_seed(0)
    return Detector(CONFIG, num_objects=2, num_attributes=3).train()


def test_every_part_of_the_detector_gets_a_gradient() -> None:
    detector = build()
    losses = detection_losses(detector, make_batch(), LossConfig())
    assert set(losses) == {"objectness", "rpn_box", "class", "box", "attribute"}
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


def test_the_same_seed_gives_the_same_loss_bit_for_bit() -> None:
    results = []
    for _ in range(2):
        detector = build()
        torch.manual_seed(5)
        results.append(torch.stack(list(detection_losses(detector, make_batch(), LossConfig()).values())))
    assert torch.equal(*results)


def test_empty_slots_change_nothing() -> None:
    batch = make_batch()
    padded = replace(
        batch,
        boxes=torch.cat([batch.boxes, torch.zeros(2, 3, 4)], 1),
        class_ids=torch.cat([batch.class_ids, torch.zeros(2, 3, dtype=torch.int64)], 1),
        crowd=torch.cat([batch.crowd, torch.zeros(2, 3, dtype=torch.bool)], 1),
        attributes=torch.cat([batch.attributes, torch.zeros(2, 3, 3)], 1),
    )
    boxes = torch.rand(2, 50, 2) * 40
    boxes = torch.cat([boxes, boxes + 20], 2)
    plain, wide = (_match(boxes, b, LossConfig()) for b in (batch, padded))
    assert torch.equal(plain.iou, wide.iou)
    assert torch.equal(plain.in_crowd, wide.in_crowd)


def test_pictures_without_objects_are_background_only() -> None:
    losses = detection_losses(build(), without_objects(make_batch()), LossConfig())
    assert losses["objectness"] > 0
    assert losses["class"] > 0
    assert losses["rpn_box"] == losses["box"] == losses["attribute"] == 0


def test_what_lies_in_a_crowd_is_neither_object_nor_background() -> None:
    proposals = [torch.zeros(0, 4), torch.tensor([[34.0, 34, 60, 60], [1, 40, 20, 60], [8, 8, 40, 31]])]
    boxes, class_ids, picture, *_ = _sample_regions(proposals, make_batch(), LossConfig())
    second = {
        tuple(box.tolist()): int(class_id)
        for box, class_id, i in zip(boxes, class_ids, picture, strict=True)
        if i == 1
    }
    assert second == {(1, 40, 20, 60): 0, (8, 8, 40, 31): 2, (8, 8, 40, 30): 2}


def test_sampled_regions_carry_their_own_object() -> None:
    proposals = [torch.tensor([[5.0, 5, 28, 28], [31, 30, 60, 60]]), torch.zeros(0, 4)]
    batch = make_batch()
    boxes, class_ids, picture, targets, attributes = _sample_regions(proposals, batch, LossConfig())
    for box, class_id, i, target, owned in zip(boxes, class_ids, picture, targets, attributes, strict=True):
        slot = 0 if i == 1 or box[0] < 20 else 1
        assert class_id == batch.class_ids[i, slot]
        assert torch.equal(target, batch.boxes[i, slot])
        assert torch.equal(owned, batch.attributes[i, slot])


def test_the_attribute_loss_is_the_mean_over_an_objects_attributes_then_over_objects_with_any() -> None:
    detector = build()
    batch = make_batch()
    recorded = []
    assert detector.head.attributes is not None
    detector.head.attributes.register_forward_hook(lambda _module, _inputs, logits: recorded.append(logits))
    loss = detection_losses(detector, batch, LossConfig(attribute_weight=1.0))["attribute"]
    log_probs = recorded[0].log_softmax(1)
    by_hand = -(log_probs[:, 0] + log_probs[:, 1]) / 2  # only regions of the one object that has attributes
    torch.testing.assert_close(loss, by_hand.mean())


_REDUCTIONS: tuple[Literal["mean", "sum"], ...] = ("mean", "sum")


def test_the_attribute_loss_may_count_each_attribute_in_full() -> None:
    """Two attributes weigh twice as much as in the mean; every sampled region with attributes has two here."""
    losses = []
    for reduction in _REDUCTIONS:
        detector = build()
        torch.manual_seed(5)
        config = LossConfig(attribute_reduction=reduction)
        losses.append(detection_losses(detector, make_batch(), config)["attribute"])
    torch.testing.assert_close(losses[1], 2 * losses[0])


def test_sampling_keeps_to_its_numbers_and_is_uniform() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([[1] * 10 + [0] * 80 + [-1] * 10, [0] * 3 + [-1] * 97])
    counts = torch.zeros(2, 100)
    for _ in range(400):
        positive, negative = _sample(labels, 16, 0.25)
        assert positive.sum(1).tolist() == [4, 0]
        assert negative.sum(1).tolist() == [12, 3]
        assert not (positive & (labels <= 0)).any()
        assert not (negative & (labels != 0)).any()
        counts += positive | negative
    assert (counts[0, :10] / 400 - 0.4).abs().max() < 0.1
    assert (counts[0, 10:90] / 400 - 0.15).abs().max() < 0.1


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="rpn_negative_iou"):
        LossConfig(rpn_negative_iou=0.8)
    with pytest.raises(ConfigError, match="attribute_reduction"):
        LossConfig(attribute_reduction="max")  # type: ignore[arg-type]
