"""The Hugging Face form of the detector: equal to its own code on its own pictures."""

from pathlib import Path

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
    rpn_maps,
)

FAMILY = "hf_frcnn"
RULE = {"rule": "max_nms", "nms_thresh": 0.3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(FAMILY, "hf-frcnn-vg", tmp_path_factory.mktemp("hf"), lambda tensors: tensors)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", cases(FAMILY), ids=lambda case: case.id)
def test_every_output_equals_the_published_implementation(model: Path, case: Case) -> None:
    detector, golden = load_for(model, case), case.golden
    extractor = RegionExtractor(detector, SelectionConfig(min_regions=36, max_regions=36))
    seen = extractor.look([case.image()])
    res4 = assert_maps(detector, seen, golden, ("stem", "res2", "res3"))
    assert_close(res4[:, :: int(golden["res4_channel_step"])], golden["res4"], "res4")
    scores, deltas = rpn_maps(detector, res4)
    step = int(golden["rpn_anchor_deltas_step"])
    assert_close(scores, golden["rpn_objectness_logits"], "objectness")
    assert_close(deltas[..., ::step, ::step], golden["rpn_anchor_deltas"], "anchor deltas")

    ties = len(case.picture["proposal_order_near_ties"])
    mine, theirs = assert_same_boxes(
        seen.proposals[0].numpy(), golden["proposals"], "proposals", swapped=ties
    )
    (regions,) = seen.regions
    probs = regions.class_logits.softmax(1)
    assert_close(
        regions.features[mine, ::32], golden["proposal_features_step32"][theirs], "proposal features"
    )
    assert_close(probs[mine, 1:].amax(1), golden["proposal_best_prob"][theirs], "best probability")
    assert (probs[mine, 1:].argmax(1).numpy() == golden["proposal_best_class"][theirs]).all()
    assert ((probs[mine].argmax(1).numpy() - 1) % 1601 == golden["proposal_argmax_all"][theirs]).all()

    with torch.inference_mode():
        boxes = torch.from_numpy(golden["given_boxes"])
        pooled = detector.head.pool(res4, [boxes])
        assert_close(pooled[[3, 9], ::16], golden["given_roipool"], "pooled")
        given = detector.regions(res4, seen.batch, [boxes])
        assert_close(given.features, golden["given_features"], "features")
        assert_close(given.class_logits.roll(-1, 1), golden["given_class_logits"], "class logits")
        assert detector.head.attributes is not None
        logits = detector.head.attributes(given.features, given.class_logits.argmax(1))
        assert_close(logits.roll(-1, 1), golden["given_attr_logits"], "attribute logits")
        assert_close(given.box_deltas[:, 1::16], golden["given_box_deltas"], "box deltas")
        assert_close(
            given.box_deltas[:2, 1:].reshape(2, -1), golden["given_box_deltas_first2"], "all box deltas"
        )

    for name, low, high in (("k36", 36, 36), ("k10_100", 10, 100)):
        record = record_of(detector, seen, "regressed", min_regions=low, max_regions=high, **RULE)
        mine, theirs = assert_same_boxes(record.boxes, golden[f"{name}_boxes"][0], name)
        assert record.object_scores is not None
        assert (np.diff(record.object_scores) <= 0).all()
        features = record.features if name == "k36" else record.features[:, ::8]
        for ours, key in (
            (features, "roi_features"),
            (record.object_scores, "obj_probs"),
            (record.attribute_scores, "attr_probs"),
        ):
            assert ours is not None
            assert_close(ours[mine], golden[f"{name}_{key}"][0][theirs], key)
        for ids, key in ((record.object_ids, "obj_ids"), (record.attribute_ids, "attr_ids")):
            assert ids is not None
            assert (ids[mine] == golden[f"{name}_{key}"][0][theirs]).all(), key
    record = record_of(detector, seen, "regressed", min_regions=100, max_regions=100, **RULE)
    resized = record.boxes * seen.batch.scales[0].repeat(2).numpy()
    assert_same_boxes(resized, golden["k100_boxes_resized"], "k100")
