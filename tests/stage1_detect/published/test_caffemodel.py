"""Real .caffemodel files of both generations, their numbers made by a formula and computed with by OpenCV."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stage1_detect.backbones import build_backbone, fold_batch_norm
from stage1_detect.config import DetectorConfig
from stage1_detect.published.c4 import resnet_state
from stage1_detect.published.caffe import tensors_of
from stage1_detect.published.caffemodel import Layer, read_caffemodel
from stage1_detect.published.tensor_file import TensorFile
from store_schema.errors import CheckpointError, InputNotFoundError
from tests.stage1_detect.published.parity import assert_close, formula_of

TINY = Path(__file__).resolve().parents[2] / "data" / "caffe_tiny"


def layers_of(name: str) -> dict[str, Layer]:
    return {layer.name: layer for layer in read_caffemodel(TINY / name)}


def test_the_newer_form_gives_every_layer_with_the_formulas_numbers() -> None:
    layers = read_caffemodel(TINY / "tiny_v2.caffemodel")
    assert [layer.name for layer in layers][:6] == [
        "conv1", "bn_conv1", "scale_conv1", "conv1_relu", "pool1", "pool1_pool1_0_split",
    ]  # fmt: skip
    assert [layer.type for layer in layers if not layer.blobs] == [
        "ReLU", "Pooling", "Split", "ReLU", "ReLU", "Eltwise", "ReLU", "Python",
    ]  # fmt: skip
    formula = formula_of(TINY)
    checked = 0
    for layer in layers:
        for number, blob in enumerate(layer.blobs):
            if layer.name != "cls_score_tiny":
                expected = formula.tensor(f"{layer.name}/{number}", blob.shape, 111)
                np.testing.assert_array_equal(blob, expected, err_msg=f"{layer.name}/{number}")
                checked += blob.size
    assert checked > 80_000
    assert [blob.shape for blob in layers[-1].blobs] == [(5, 12), (5,)]


def test_the_older_form_gives_its_arrays_in_four_dimensions() -> None:
    expected = np.load(TINY / "tiny_v1_expected.npz")
    found = {
        f"{layer.name}/{number}": blob
        for layer in read_caffemodel(TINY / "tiny_v1.caffemodel")
        for number, blob in enumerate(layer.blobs)
    }
    assert found.keys() == set(expected.files)
    for name, blob in found.items():
        np.testing.assert_array_equal(blob, expected[name], err_msg=name)


@torch.no_grad()
def test_renamed_tensors_compute_what_opencv_computed() -> None:
    """Stem, BatchNorm with its factor, Scale, pooling without border, and a whole residual block."""
    golden = np.load(TINY / "tiny_forward.npz")
    file = TensorFile(TINY, tensors_of(read_caffemodel(TINY / "tiny_v2.caffemodel")))
    state = {name.removeprefix("backbone."): tensor for name, tensor in resnet_state(file).items()}
    config = DetectorConfig.resnet_c4("bottleneck", blocks=(1, 1, 1, 1), stem_pool="ceil", stride_in_1x1=True)
    backbone = build_backbone(config)[0].eval()
    missing = backbone.load_state_dict(state, strict=False)
    assert missing.unexpected_keys == []
    assert all(name.startswith(("body.5", "body.6")) for name in missing.missing_keys)
    fold_batch_norm(backbone)
    body = backbone.body
    assert isinstance(body, torch.nn.Sequential)
    pool1 = body[:4](torch.from_numpy(golden["v2_input"]))
    assert_close(pool1, golden["v2_pool1"], "pool1")
    assert_close(body[4](pool1), golden["v2_res2a"], "res2a")
    assert list(file.names()) == ["cls_score_tiny/0", "cls_score_tiny/1"]
    (note,) = file.notes()
    assert "cls_score_tiny/0 [5, 12]" in note


@torch.no_grad()
def test_the_older_forms_matrices_compute_what_opencv_computed() -> None:
    golden = np.load(TINY / "tiny_forward.npz")
    layers = layers_of("tiny_v1.caffemodel")
    conv = [torch.from_numpy(blob.copy()) for blob in layers["conv1"].blobs]
    hidden = F.conv2d(torch.from_numpy(golden["v1_input"]), conv[0], conv[1].reshape(-1), stride=2, padding=3)
    pooled = F.max_pool2d(hidden.relu(), 3, 2, ceil_mode=True)
    assert_close(pooled, golden["v1_pool1"], "pool1")
    renamed = tensors_of([Layer("cls_score", "14", layers["fc"].blobs)])
    weight, bias = renamed.values()
    assert weight.shape == (7, 1024)
    assert_close(pooled.flatten(1) @ weight.T + bias, golden["v1_fc"].reshape(1, -1), "fc")


def test_a_factor_of_zero_stands_for_statistics_of_zero() -> None:
    ones = np.ones(3, np.float32)
    tensors = tensors_of([Layer("bn2a_branch2a", "BatchNorm", (ones, ones, np.zeros(1, np.float32)))])
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "backbone.res2.0.conv1.norm.running_mean": [0, 0, 0],
        "backbone.res2.0.conv1.norm.running_var": [0, 0, 0],
    }


@pytest.mark.parametrize("size", [10, 1000, 66_000])
def test_a_file_cut_short_is_named(tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.caffemodel"
    path.write_bytes((TINY / "tiny_v1.caffemodel").read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"cut\.caffemodel: (cut short|it holds no layers)"):
        read_caffemodel(path)


def test_other_files_are_no_caffemodels(tmp_path: Path) -> None:
    for name, content in (
        ("empty", b""),
        ("text", b"layer { name: 'conv1' }\n"),
        ("zip", b"PK\x03\x04" * 50),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"no layers|no \.caffemodel"):
            read_caffemodel(tmp_path / name)
    with pytest.raises(InputNotFoundError, match="nowhere"):
        read_caffemodel(tmp_path / "nowhere")
