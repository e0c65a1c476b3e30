"""Which kind of published weights a file is, by the names of its tensors."""

from pathlib import Path

from stage1_detect.published.tensor_file import TensorFile
from store_schema.errors import CheckpointError

_SIGNS = {
    "hf-frcnn-vg": "roi_heads.box_predictor.cls_embedding.weight",
    "bua-caffe-pth": "roi_heads.box_predictor.cls_embed.weight",
    "detectron2-c4": "roi_heads.attribute_predictor.obj_embed.weight",
    "torchvision": "rpn.head.bbox_pred.weight",
}


def recognise(path: Path) -> str:
    """The kind, as `butd convert-weights --from` names it.

    Errors: those of `TensorFile.read`; `CheckpointError` for weights of no kind that is known.
    """
    if path.suffix == ".caffemodel" or (path.is_dir() and any(path.glob("*.caffemodel"))):
        return "caffemodel"
    names = set(TensorFile.read(path).names())
    for kind, sign in _SIGNS.items():
        if sign in names:
            return kind
    raise CheckpointError(
        f"{path}: weights of none of the kinds {sorted([*_SIGNS, 'caffemodel'])}; it begins with {sorted(names)[:3]}"
    )
