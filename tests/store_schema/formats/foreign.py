"""Files in the forms of public code, written the way that code writes them, with nothing of ours.

Each function follows the statements of the named script: csv.DictWriter and base64 of numpy bytes, h5py with its
defaults, np.savez_compressed with a dict that numpy pickles.
"""

import base64
import csv
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

DIM = 7


@dataclass(frozen=True, eq=False)
class Regions:
    """A picture as a script has it before it writes."""

    number: int
    width: int
    height: int
    boxes: NDArray[np.float32]
    features: NDArray[np.float32]
    objects: NDArray[np.int64]
    object_scores: NDArray[np.float32]
    attributes: NDArray[np.int64]
    attribute_scores: NDArray[np.float32]

    @property
    def name(self) -> str:
        return f"COCO_val2014_{self.number:012d}"


def regions(number: int, num: int) -> Regions:
    """Random, and always the same."""
    rng = np.random.default_rng(number)
    width, height = int(rng.integers(300, 641)), int(rng.integers(300, 641))
    corner = rng.uniform(0, 0.5, (num, 2)) * [width, height]
    extent = rng.uniform(0.1, 0.49, (num, 2)) * [width, height]
    return Regions(
        number=number,
        width=width,
        height=height,
        boxes=np.concatenate([corner, corner + extent], axis=1).astype(np.float32),
        features=np.maximum(rng.normal(size=(num, DIM)), 0).astype(np.float32),
        objects=rng.integers(0, 1600, num),
        object_scores=rng.random(num).astype(np.float32),
        attributes=rng.integers(0, 400, num),
        attribute_scores=rng.uniform(0.1, 1, num).astype(np.float32),
    )


FIXED = [regions(number, 6) for number in (42, 9, 318556)]
ADAPTIVE = [regions(number, num) for number, num in ((42, 10), (9, 31), (318556, 17), (7, 10))]


def text(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")


def caffe_tsv(path: Path, pictures: Sequence[Regions]) -> Path:
    """peteanderson80/bottom-up-attention, tools/generate_tsv.py."""
    names = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, delimiter="\t", fieldnames=names)
        for p in pictures:
            row = [p.number, p.width, p.height, len(p.boxes), text(p.boxes), text(p.features)]
            writer.writerow(dict(zip(names, row, strict=True)))
    return path


def lxmert_tsv(path: Path, pictures: Sequence[Regions], *, no_attributes: bool = False) -> Path:
    """airsplay/lxmert, data/nlvr2_imgfeat/extract_nlvr2_image.py; zeros as attributes in py-bottom-up-attention."""
    names = ["img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"]
    names += ["num_boxes", "boxes", "features"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, delimiter="\t", fieldnames=names)
        for p in pictures:
            ids, scores = p.attributes, p.attribute_scores
            if no_attributes:
                ids, scores = np.zeros_like(ids), np.zeros_like(scores)
            row = [p.name, p.height, p.width, text(p.objects), text(p.object_scores), text(ids), text(scores)]
            row += [len(p.boxes), text(p.boxes), text(p.features)]
            writer.writerow(dict(zip(names, row, strict=True)))
    return path


def spatial(p: Regions) -> NDArray[np.float32]:
    """tools/detection_features_converter.py of hengyuan-hu/bottom-up-attention-vqa."""
    image_w, image_h = float(p.width), float(p.height)
    box_width, box_height = p.boxes[:, 2] - p.boxes[:, 0], p.boxes[:, 3] - p.boxes[:, 1]
    scaled_width, scaled_height = box_width / image_w, box_height / image_h
    scaled_x, scaled_y = p.boxes[:, 0] / image_w, p.boxes[:, 1] / image_h
    columns = [
        scaled_x,
        scaled_y,
        scaled_x + scaled_width,
        scaled_y + scaled_height,
        scaled_width,
        scaled_height,
    ]
    return np.concatenate([column[..., np.newaxis] for column in columns], axis=1)


def butd_hdf5(path: Path, pictures: Sequence[Regions], *, protocol: int = 2) -> Path:
    """The same script: 36 regions a picture, the index in a pickle of Python 2."""
    num, k = len(pictures), len(pictures[0].boxes)
    with h5py.File(path, "w") as file:
        features = file.create_dataset("image_features", (num, k, DIM), "f")
        boxes = file.create_dataset("image_bb", (num, k, 4), "f")
        spatials = file.create_dataset("spatial_features", (num, k, 6), "f")
        for row, p in enumerate(pictures):
            boxes[row, :, :], features[row, :, :], spatials[row, :, :] = p.boxes, p.features, spatial(p)
    index = {p.number: row for row, p in enumerate(pictures)}
    path.with_name(f"{path.stem}_imgid2idx.pkl").write_bytes(pickle.dumps(index, protocol=protocol))
    return path


def adaptive_hdf5(path: Path, pictures: Sequence[Regions]) -> Path:
    """The flat form of jnhwkim/ban-vqa: pos_boxes has the first row and the row after the last."""
    ends = np.cumsum([len(p.boxes) for p in pictures])
    with h5py.File(path, "w") as file:
        file["image_features"] = np.concatenate([p.features for p in pictures])
        file["image_bb"] = np.concatenate([p.boxes for p in pictures])
        file["spatial_features"] = np.concatenate([spatial(p) for p in pictures])
        file["pos_boxes"] = np.stack([ends - [len(p.boxes) for p in pictures], ends], axis=1).astype("int32")
    index = {p.number: row for row, p in enumerate(pictures)}
    path.with_name(f"{path.stem}_imgid2idx.pkl").write_bytes(pickle.dumps(index, protocol=2))
    return path


def milvlg_npz(folder: Path, pictures: Sequence[Regions], *, detectron2: bool = False) -> Path:
    """MILVLG/bottom-up-attention.pytorch, utils/extract_utils.py; with detectron2 probabilities of all classes."""
    folder.mkdir()
    for p in pictures:
        info: dict[str, Any] = {
            "image_id": p.name,
            "image_h": p.height,
            "image_w": p.width,
            "num_boxes": len(p.boxes),
            "objects_id": p.objects,
            "objects_conf": p.object_scores,
            "attrs_id": p.attributes,
            "attrs_conf": p.attribute_scores,
        }
        if detectron2:
            rows = np.arange(len(p.boxes))
            classes, attributes = np.zeros((len(rows), 1600), "f"), np.zeros((len(rows), 400), "f")
            classes[rows, p.objects], attributes[rows, p.attributes] = p.object_scores, p.attribute_scores
            for key in ("objects_id", "objects_conf", "attrs_conf"):
                del info[key]
            info |= {"objects": p.objects, "cls_prob": classes, "attrs_id": attributes}
        np.savez_compressed(
            folder / p.name,
            x=p.features,
            bbox=p.boxes,
            num_bbox=len(p.boxes),
            image_h=p.height,
            image_w=p.width,
            info=info,  # type: ignore[arg-type]
        )
    return folder


def cocobu(folder: Path, pictures: Sequence[Regions], *, key: str = "feat") -> Path:
    """ruotianluo/self-critical.pytorch, scripts/make_bu_data.py."""
    for kind in ("att", "fc", "box"):
        (folder / f"cocobu_{kind}").mkdir(parents=True)
    for p in pictures:
        np.savez_compressed(folder / f"cocobu_att/{p.number}", **{key: p.features})  # type: ignore[arg-type]
        np.save(folder / f"cocobu_fc/{p.number}", p.features.mean(0))
        np.save(folder / f"cocobu_box/{p.number}", p.boxes)
    return folder


def mmf_npy(folder: Path, pictures: Sequence[Regions]) -> Path:
    """facebookresearch/mmf, tools/scripts/features/extract_features_vmb.py."""
    folder.mkdir()
    for p in pictures:
        probs = np.random.default_rng(p.number).random((len(p.boxes), 1600)).astype("f")
        probs[np.arange(len(probs)), p.objects] = p.object_scores
        info = {
            "bbox": p.boxes,
            "num_boxes": len(p.boxes),
            "objects": p.objects,
            "cls_prob": probs,
            "image_width": p.width,
            "image_height": p.height,
        }
        np.save(folder / f"{p.name}.npy", p.features)
        np.save(folder / f"{p.name}_info.npy", info)  # type: ignore[arg-type]
    return folder


def coco_images(path: Path, pictures: Sequence[Regions]) -> Path:
    """The part of COCO's instances_*.json that says how large pictures are."""
    import json

    images = [
        {"id": p.number, "width": p.width, "height": p.height, "file_name": f"{p.name}.jpg"} for p in pictures
    ]
    path.write_text(json.dumps({"images": images}))
    return path
