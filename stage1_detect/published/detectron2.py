"""detectron2's R-C4 detectors of Visual Genome: MILVLG's bottom-up models of the d2 kind, and grid-feats-vqa's.

RoIAlign, res5 with stride 2, background last, no "none" among the attributes, regions that are the usual detections:
regressed boxes beside the features of the proposals.

Source: MILVLG/bottom-up-attention.pytorch, bua/d2 and configs/d2; facebookresearch/detectron2.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from stage1_detect.published.c4 import HeadNames, centred_anchors, convert_c4
from stage1_detect.published.tensor_file import TensorFile
from store_schema.errors import CheckpointError

HEADS = HeadNames(
    embedding="roi_heads.attribute_predictor.obj_embed",
    hidden="roi_heads.attribute_predictor.fc.0",
    logits="roi_heads.attribute_predictor.attr_score",
    background="last",
    none="absent",
)
RULES: dict[str, Any] = {
    "channel_order": "bgr",
    "pixel_mean": (103.53, 116.28, 123.675),
    "pixel_std": (1.0, 1.0, 1.0),
    "interpolation": "bilinear_exact",
    "stride_in_1x1": True,
    "cell_anchors": centred_anchors((32, 64, 128, 256, 512), (0.5, 1.0, 2.0)),
    "anchor_sizes": (),
    "anchor_ratios": (),
    "rpn_post_nms_test": 1000,
    "rpn_min_size": 0.0,
    "rpn_min_size_kept": False,
    "background_embedding": True,
}
EXTRACTION: dict[str, Any] = {"mode": "proposal", "selection": {"min_regions": 10, "max_regions": 100}}


def convert(
    source: Path, objects: str = "", attributes: str = ""
) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Read the .pth or .pkl file, or the folder with it; the anchors are those of the published configurations."""
    file = TensorFile.read(source)
    logits = "proposal_generator.rpn_head.objectness_logits.bias"
    if file.shape(logits) != (15,):
        raise CheckpointError(
            f"{file.path}: 15 anchors a cell expected, as in the published configurations, {logits!r} has "
            f"{file.shape(logits)[0]} numbers"
        )
    notes = [
        "the file holds no anchors, mean or sizes: they are those of the published configurations (15 anchors of 32 "
        "to 512 pixels, 600 to 1,000 pixels)"
    ]
    state, description, found = convert_c4(
        file, HEADS, RULES, EXTRACTION, objects=objects, attributes=attributes
    )
    return state, description, notes + found
