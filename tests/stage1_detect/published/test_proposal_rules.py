"""From the public implementations' own score and delta maps, our rules give their proposals: no network is run."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stage1_detect.config import DetectorConfig
from stage1_detect.proposals import RegionProposalNetwork
from stage1_detect.published import caffe, detectron2, huggingface, milvlg
from stage1_detect.published.c4 import centred_anchors
from tests.stage1_detect.published.parity import Case, assert_same_boxes, cases

HF_ANCHORS = centred_anchors((64, 128, 256, 512), (0.5, 1.0, 2.0))
FAMILIES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "hf_frcnn": (
        {**huggingface.RULES, "cell_anchors": HF_ANCHORS},
        "rpn_objectness_logits",
        "rpn_anchor_deltas",
        "proposals",
    ),
    "milvlg_caffe": (
        {**milvlg.RULES, "cell_anchors": milvlg.caffe_anchors()},
        "rpn_cls_score",
        "rpn_bbox_pred",
        "proposals",
    ),
    "caffe_opencv": (
        {**caffe.RULES, "cell_anchors": milvlg.caffe_anchors()},
        "rpn_cls_score",
        "rpn_bbox_pred",
        "rois",
    ),
    "detectron2_c4": (detectron2.RULES, "rpn_objectness_logits", "rpn_anchor_deltas", "proposals"),
}


class Fixed(nn.Module):
    """Answers with the same map, whatever it is asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, _: Tensor) -> Tensor:
        return self.answer


def unthinned_cases() -> list[Any]:
    """The pictures whose maps are whole in the folders."""
    found = []
    for family in FAMILIES:
        for case in cases(family):
            golden = case.golden
            steps = [
                int(golden[name]) for name in ("rpn_step", "rpn_anchor_deltas_step") if name in golden.files
            ]
            if max(steps) == 1:
                found.append(pytest.param(family, case, id=f"{family}-{case.id}"))
    return found or [
        pytest.param("", None, marks=pytest.mark.skip(reason="the public answers are not there"))
    ]


@pytest.mark.parametrize(("family", "case"), unthinned_cases())
def test_the_same_maps_give_the_same_proposals(family: str, case: Case) -> None:
    rules, scores, deltas, proposals = FAMILIES[family]
    golden = case.golden
    maps = [
        torch.from_numpy(golden[name]).reshape(1, -1, *golden[name].shape[-2:]) for name in (scores, deltas)
    ]
    rpn = RegionProposalNetwork(DetectorConfig.resnet_c4("resnet101", **rules), channels=1, stride=16).eval()
    rpn.conv, rpn.objectness, rpn.deltas = (Fixed(answer) for answer in (torch.zeros_like(maps[0]), *maps))  # type: ignore[assignment]
    height, width = (int(side) for side in golden["image_shape"][2:])
    scale = float(golden["im_scale"]) if "im_scale" in golden.files else 1.0
    (found,) = rpn.proposals(torch.zeros(1), [(height, width)], [scale])
    expected = golden[proposals][:, -4:]
    mine, theirs = assert_same_boxes(found.numpy(), expected, family)
    ties = len(case.picture.get("proposal_order_near_ties", ())) + (family == "detectron2_c4") * 20
    assert np.count_nonzero(mine != theirs) <= 2 * ties
