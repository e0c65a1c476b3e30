"""The paper's own detector: its .caffemodel answers as Caffe's network in OpenCV and the release's Python did."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.conversion import convert
from stage1_detect.config import SelectionConfig
from stage1_detect.extract import RegionExtractor
from tests.stage1_detect.published.parity import (
    PARITY,
    Case,
    assert_close,
    assert_maps,
    assert_same_boxes,
    cases,
    formula_of,
    load_for,
    record_of,
    rpn_maps,
)
from tests.stage1_detect.published.test_milvlg import assert_regions, named_outputs

FAMILY = "caffe_opencv"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not cases(FAMILY):
        pytest.skip(
            f"no {PARITY / FAMILY}: the answers of public implementations are not part of the project"
        )
    folder = tmp_path_factory.mktemp("caffe")
    published = folder / "published.caffemodel"
    with published.open("wb") as file:
        file.writelines(serialized_layers(PARITY / FAMILY))
    convert(published, folder / "model", "caffemodel")
    published.unlink()
    return folder / "model"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", cases(FAMILY), ids=lambda case: case.id)
def test_every_output_equals_the_published_implementation(model: Path, case: Case) -> None:
    detector, golden = load_for(model, case), case.golden
    extractor = RegionExtractor(detector, SelectionConfig(min_regions=36, max_regions=36))
    seen = extractor.look([case.image()])
    res4 = assert_maps(detector, seen, golden, ("pool1", "res2c", "res3b3"))
    assert_close(
        res4[0, :: int(golden["res4_channel_step"])], golden["res4b22"].reshape(-1, *res4.shape[2:]), "res4"
    )
    scores, deltas = rpn_maps(detector, res4)
    step = int(golden["rpn_step"])
    assert_close(scores[0, :, ::step, ::step], golden["rpn_cls_score"], "objectness")
    assert_close(deltas[0, :, ::step, ::step], golden["rpn_bbox_pred"], "anchor deltas")
    swapped = 2 * assert_regions(
        detector, seen, golden, len(case.picture["proposal_order_near_ties"]), golden["rois"][:, 1:]
    )

    for name, low, high in (("k36", 36, 36), ("k10_100", 10, 100)):
        record = record_of(detector, seen, "proposal", min_regions=low, max_regions=high, order="proposal")
        mine, theirs = assert_same_boxes(record.boxes, golden[f"{name}_boxes"], name, swapped=swapped)
        features = record.features[:, :: 4 if name == "k36" else 8]
        assert_close(features[mine], golden[f"{name}_features"][theirs], f"{name} features")
        for key, ours in named_outputs(record):
            assert_close(ours[mine], golden[f"{name}_{key}"][theirs], f"{name} {key}")


def serialized_layers(folder: Path) -> Iterator[bytes]:
    """The layers of tensors.json as a .caffemodel holds them, one after the other."""
    formula, listed = formula_of(folder), json.loads((folder / "tensors.json").read_text())
    calibrated = np.load(folder.parent / "milvlg_caffe" / "calibrated.npz")
    blobs: dict[tuple[str, str], list[bytes]] = {}
    for entry in listed["tensors"]:
        name, shape = entry["torch_name"], entry["shape"]
        if name is None:
            values = np.full(shape, entry["value"], np.float32)
        else:
            made = (
                calibrated[name]
                if entry["source"] == "calibrated"
                else formula.tensor(name, shape, listed["seed"])
            )
            values = (made.astype(np.float64) * entry["times"]).astype(np.float32)
        dims = field(7, field(1, b"".join(varint(dim) for dim in shape)))
        blobs.setdefault((entry["layer"], entry["type"]), []).append(field(5, values.tobytes()) + dims)
    for (name, kind), layer in blobs.items():
        yield field(
            100, field(1, name.encode()) + field(2, kind.encode()) + b"".join(field(7, b) for b in layer)
        )


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])
