"""MILVLG's form of the paper's detector: equal to its own code on its own pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stage1_detect.config import SelectionConfig
from stage1_detect.extract import RegionExtractor
from tests.stage1_detect.published.parity import (
    Case,
    assert_close,
    assert_maps,
    assert_same_boxes,
    cases,
    converted,
    load_for,
    record_of,
    rounded_alike,
    rpn_maps,
)

FAMILY = "milvlg_caffe"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wrap = lambda tensors: {"model": tensors}  # noqa: E731
    return converted(FAMILY, "bua-caffe-pth", tmp_path_factory.mktemp("mil"), wrap)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", cases(FAMILY), ids=lambda case: case.id)
def test_every_output_equals_the_published_implementation(model: Path, case: Case) -> None:
    detector, golden = load_for(model, case), case.golden
    extractor = RegionExtractor(detector, SelectionConfig(min_regions=36, max_regions=36))
    seen = extractor.look([case.image()])
    assert seen.batch.scales[0, 0].item() == np.float32(golden["im_scale"])
    res4 = assert_maps(detector, seen, golden, ("stem", "res2", "res3"))
    assert_close(res4[:, :: int(golden["res4_channel_step"])], golden["res4"], "res4")
    scores, deltas = rpn_maps(detector, res4)
    step = int(golden["rpn_step"])
    assert_close(scores[..., ::step, ::step], golden["rpn_cls_score"], "objectness")
    assert_close(deltas[..., ::step, ::step], golden["rpn_bbox_pred"], "anchor deltas")
    ties = len(case.picture["proposal_order_near_ties"])
    swapped = 2 * assert_regions(detector, seen, golden, ties, golden["proposals"])

    for name, low, high in (("k36", 36, 36), ("k10_100", 10, 100)):
        record = record_of(detector, seen, "proposal", min_regions=low, max_regions=high, order="proposal")
        mine, theirs = assert_same_boxes(record.boxes, golden[f"{name}_bbox"], name, swapped=swapped)
        features = record.features if name == "k36" else record.features[:, ::8]
        assert_close(features[mine], golden[f"{name}_x"][theirs], f"{name} features")
        for key, ours in named_outputs(record):
            assert_close(ours[mine], golden[f"{name}_info_{key}"][theirs], f"{name} {key}")


@torch.inference_mode()
def assert_regions(detector: Any, seen: Any, golden: Any, ties: int, proposals: Any) -> int:
    """The proposals, what the heads say of them, and of the given boxes; background first, as in Caffe.

    Returns how many proposals RoIPool rounds to other cells: each has other features, so that it and one that it
    suppresses, or no longer does, may be chosen otherwise.
    """
    mine, theirs = assert_same_boxes(seen.proposals[0].numpy(), proposals, "proposals", swapped=ties)
    alike = rounded_alike(seen.proposals[0].numpy()[mine], proposals[theirs])
    others = int((~alike).sum())
    mine, theirs = mine[alike], theirs[alike]
    (regions,) = seen.regions
    probs = regions.class_logits.softmax(1)
    assert_close(
        regions.features[mine, ::32], golden["proposal_features_step32"][theirs], "proposal features"
    )
    assert_close(probs[mine, 1:].amax(1), golden["proposal_best_prob"][theirs], "best probability")
    assert (probs[mine, 1:].argmax(1).numpy() == golden["proposal_best_class"][theirs]).all()
    assert (probs[mine].argmax(1).numpy() == golden["proposal_argmax_all"][theirs]).all()
    boxes = torch.from_numpy(golden["given_boxes"])
    pooled = detector.head.pool(seen.feature_map, [boxes])
    assert_close(pooled[[3, 9], ::16], golden["given_roipool"], "pooled")
    given = detector.regions(seen.feature_map, seen.batch, [boxes])
    assert_close(given.features, golden["given_features"], "features")
    assert_close(given.class_logits, golden["given_class_logits"], "class logits")
    logits = detector.head.attributes(given.features, given.class_logits.argmax(1))
    assert_close(logits, golden["given_attr_logits"], "attribute logits")
    assert_close(given.box_deltas[:, ::16], golden["given_box_deltas"], "box deltas")
    assert_close(given.box_deltas[:2].reshape(2, -1), golden["given_box_deltas_first2"], "all box deltas")
    return others


def named_outputs(record: Any) -> list[tuple[str, Any]]:
    """A record's labels and scores by their names in published files."""
    return [
        ("objects_id", record.object_ids),
        ("objects_conf", record.object_scores),
        ("attrs_id", record.attribute_ids),
        ("attrs_conf", record.attribute_scores),
    ]
