"""Detectors that people use, with where they are, under which licence, how many regions, and the scores reported.

The scores are the publishers'. Visual Genome: mAP@.5 over 1,600 objects, weighted, attributes, weighted. COCO: AP.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A published detector."""

    reference: str
    """What `--weights` takes, or the name of a file that one must have."""
    kind: str
    """As `butd convert-weights --from` names it."""
    what: str
    licence: str
    regions: str
    scores: str


PRESETS = (
    Preset(
        "hf:unc-nlp/frcnn-vg-finetuned",
        "hf-frcnn-vg",
        "Visual Genome, ResNet-101 C4 with attributes, Hugging Face's form (LXMERT, VisualBERT)",
        "not stated; code Apache-2.0",
        "36 regressed",
        "not reported",
    ),
    Preset(
        "faster_rcnn_from_caffe_attr.pkl",
        "hf-frcnn-vg",
        "the same from airsplay/py-bottom-up-attention: a file",
        "Apache-2.0",
        "36 regressed",
        "not reported",
    ),
    Preset(
        "resnet101_faster_rcnn_final.caffemodel",
        "caffemodel",
        "Visual Genome, the paper's own: a file",
        "MIT",
        "10..100",
        "10.2 / 15.1, 7.8 / 27.8",
    ),
    Preset(
        "resnet101_faster_rcnn_final_iter_320000.caffemodel",
        "caffemodel",
        "Visual Genome, the paper's own for fixed k: a file",
        "MIT",
        "36",
        "not reported",
    ),
    Preset(
        "bua-caffe-frcn-r101-k36.pth",
        "bua-caffe-pth",
        "Visual Genome, the paper's in MILVLG's form: a file",
        "Apache-2.0",
        "36",
        "9.3 / 14.0",
    ),
    Preset(
        "bua-caffe-frcn-r101-k10-100.pth",
        "bua-caffe-pth",
        "Visual Genome, the paper's in MILVLG's form: a file",
        "Apache-2.0",
        "10..100",
        "10.2 / 15.1",
    ),
    Preset(
        "bua-d2-frcn-r101.pth",
        "detectron2-c4",
        "Visual Genome, detectron2's ResNet-101 C4 by MILVLG: a file",
        "Apache-2.0",
        "10..100",
        "9.2 / 15.9",
    ),
    Preset(
        "torchvision:fasterrcnn_resnet50_fpn_v2",
        "torchvision",
        "COCO, 80 objects, no attributes",
        "BSD-3-Clause",
        "any",
        "AP 46.7",
    ),
    Preset(
        "torchvision:fasterrcnn_resnet50_fpn",
        "torchvision",
        "COCO, 80 objects, no attributes",
        "BSD-3-Clause",
        "any",
        "AP 37.0",
    ),
    Preset(
        "torchvision:fasterrcnn_mobilenet_v3_large_fpn",
        "torchvision",
        "COCO, 80 objects, no attributes, for small machines",
        "BSD-3-Clause",
        "any",
        "AP 32.8",
    ),
    Preset(
        "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn",
        "torchvision",
        "COCO, 80 objects, no attributes, for the smallest machines",
        "BSD-3-Clause",
        "any",
        "AP 22.8",
    ),
)


def listing() -> str:
    """The presets as text, a block each."""
    blocks = [
        f"{preset.reference}\n    {preset.what}\n"
        f"    kind {preset.kind}; licence {preset.licence}; regions {preset.regions}; scores {preset.scores}"
        for preset in PRESETS
    ]
    return "\n".join(
        [
            *blocks,
            "",
            "hf:OWNER/NAME[@REVISION], torchvision:NAME and URLs are downloaded, converted and remembered. A file that "
            "you hold: butd convert-weights FILE OUT --from KIND. Classifiers for a grid: timm:NAME, or "
            "torchvision:NAME with --classifier NAME. More: docs/weights.md",
        ]
    )
