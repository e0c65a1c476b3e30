"""detectron2's C4 detector of Visual Genome: equal to its own code on its own pictures."""

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
    rpn_maps,
)

FAMILY = "detectron2_c4"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wrap = lambda tensors: {"model": tensors}  # noqa: E731
    return converted(FAMILY, "detectron2-c4", tmp_path_factory.mktemp("d2"), wrap)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", cases(FAMILY), ids=lambda case: case.id)
@torch.inference_mode()
def test_every_output_equals_the_published_implementation(model: Path, case: Case) -> None:
    detector, golden = load_for(model, case), case.golden
    seen = RegionExtractor(detector, SelectionConfig(min_regions=36, max_regions=36)).look([case.image()])
    res4 = assert_maps(detector, seen, golden, ("stem", "res2", "res3"))
    assert_close(res4[:, :: int(golden["res4_channel_step"])], golden["res4"], "res4")
    conv5 = detector.head.trunk[0](res4)  # type: ignore[index]
    assert tuple(conv5.shape) == tuple(golden["grid_res5_shape"])
    assert_close(
        conv5[:, :: int(golden["grid_res5_channel_step"])], golden["grid_res5"], "res5 of the whole map"
    )
    scores, deltas = rpn_maps(detector, res4)
    step = int(golden["rpn_step"])
    assert_close(scores[..., ::step, ::step], golden["rpn_objectness_logits"], "objectness")
    assert_close(deltas[..., ::step, ::step], golden["rpn_anchor_deltas"], "anchor deltas")
    assert_same_boxes(seen.proposals[0].numpy(), golden["proposals"], "proposals", swapped=10)

    boxes = torch.from_numpy(golden["given_boxes"])
    pooled = detector.head.pool(res4, [boxes])
    assert_close(pooled[[3, 9], ::16], golden["given_roialign"], "pooled")
    given = detector.regions(res4, seen.batch, [boxes])
    assert_close(given.features, golden["given_features"], "features")
    assert_close(given.class_logits.roll(-1, 1), golden["given_class_logits"], "class logits")
    class_ids = given.class_logits.argmax(1)
    assert_close(
        detector.attribute_logits(given.features, class_ids), golden["given_attr_logits"], "attributes"
    )
    assert_close(given.box_deltas[:, 1::16], golden["given_box_deltas"], "box deltas")
    assert_close(given.box_deltas[:2, 1:].reshape(2, -1), golden["given_box_deltas_first2"], "all box deltas")

    (regions,) = seen.regions
    (found,) = detector.detections(seen.proposals, regions, seen.batch)
    sides = np.array([golden["final_image_w"], golden["final_image_h"]] * 2)
    published = golden["final_bbox"].clip(max=sides)  # a rounded size over the exact scale leaves the picture
    mine, theirs = assert_same_boxes(found.boxes.numpy(), published, "detections")
    assert_close(regions.features[found.proposals[mine], ::8], golden["final_x"][theirs], "their features")
    assert (found.class_ids[mine].numpy() == golden["final_objects"][theirs]).all()
    assert_close(found.scores[mine], golden["final_cls_prob_of_object"][theirs], "their scores")
    probs = regions.class_logits.softmax(1)[found.proposals[mine]]
    attributes = detector.attribute_probs(regions.features[found.proposals[mine]], probs)
    assert_close(attributes.amax(1), golden["final_attr_best_prob"][theirs], "attribute probability")
    assert (attributes.argmax(1).numpy() == golden["final_attr_best"][theirs]).all()
