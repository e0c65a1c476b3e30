"""The Hugging Face form of the detector (unc-nlp/frcnn-vg-finetuned), and airsplay's, whose file it is.

Its relative of the paper's network: the same ResNet and heads, but background and "none" last, one logit an anchor,
continuous boxes, a resize by each axis's own rounded ratio, and regions that are regressed boxes beside the features
of the proposals that they come from, thinned all together.

Source: facebookresearch/mmf, tools/scripts/features/frcnn; the file could not be seen, its names are the code's.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from stage1_detect.published.c4 import CAFFE_MEAN, HeadNames, centred_anchors, convert_c4, listed
from stage1_detect.published.tensor_file import TensorFile

HEADS = HeadNames(
    embedding="roi_heads.box_predictor.cls_embedding",
    hidden="roi_heads.box_predictor.fc_attr",
    logits="roi_heads.box_predictor.attr_score",
    background="last",
    none="last",
)
RULES: dict[str, Any] = {
    "channel_order": "bgr",
    "pixel_mean": CAFFE_MEAN,
    "pixel_std": (1.0, 1.0, 1.0),
    "size_rounding": "half_up",
    "stem_pool": "ceil",
    "stride_in_1x1": True,
    "conv5_dilation": 2,
    "anchor_sizes": (),
    "anchor_ratios": (),
    "rpn_min_size": 0.0,
    "rpn_min_size_kept": False,
    "pooler": "roi_pool",
    "pooler_sampling": 0,
    "no_attribute": "ignored",
    "background_embedding": True,
}
EXTRACTION: dict[str, Any] = {
    "mode": "regressed",
    "selection": {"min_regions": 36, "max_regions": 36, "nms_thresh": 0.3, "rule": "max_nms"},
}
_ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"


def convert(
    source: Path, objects: str = "", attributes: str = ""
) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Read pytorch_model.bin, airsplay's .pkl, or the folder with it."""
    file = TensorFile.read(source)
    notes = ["the deltas of boxes are taken to be scaled by 10, 10, 5, 5, as in the published configuration"]
    if _ANCHORS in file:
        anchors = listed(file.take(_ANCHORS))
    else:
        anchors = centred_anchors((64, 128, 256, 512), (0.5, 1.0, 2.0))
        notes.append(f"the file has no {_ANCHORS}: the anchors are those of the published configuration")
    rules = {**RULES, "cell_anchors": anchors}
    state, description, found = convert_c4(
        file, HEADS, rules, EXTRACTION, objects=objects, attributes=attributes
    )
    return state, description, notes + found
