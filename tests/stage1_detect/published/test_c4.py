"""Converters on a small made-up network: every tensor used, moved to its row, or named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.conversion import convert
from stage1_detect.detector import Detector, load_detector
from stage1_detect.published import detectron2, huggingface, milvlg
from stage1_detect.published.vocabulary import names_for
from store_schema.artifacts import read_model_json
from store_schema.errors import CheckpointError, InputNotFoundError, UsageError

OBJECTS, ATTRIBUTES = 5, 3
FAMILIES: dict[str, Any] = {
    "hf-frcnn-vg": huggingface,
    "bua-caffe-pth": milvlg,
    "detectron2-c4": detectron2,
}


def published(kind: str) -> dict[str, Tensor]:
    """Tensors by the names of a family, with one bottleneck a stage; each row of a head holds its own number."""
    heads = FAMILIES[kind].HEADS
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}

    def conv(name: str, outputs: int, inputs: int, size: int = 1) -> None:
        tensors[f"{name}.weight"] = torch.randn(outputs, inputs, size, size) / (inputs * size**2) ** 0.5
        for part in ("weight", "bias", "running_mean"):
            tensors[f"{name}.norm.{part}"] = torch.randn(outputs)
        tensors[f"{name}.norm.running_var"] = torch.rand(outputs) + 0.5
        if kind != "detectron2-c4":
            tensors[f"{name}.norm.num_batches_tracked"] = torch.tensor(0)

    conv("backbone.stem.conv1", 64, 3, 7)
    inputs = 64
    for stage, place in enumerate(("backbone.res2", "backbone.res3", "backbone.res4", "roi_heads.res5")):
        inner, outputs = 4 * 2**stage, 256 * 2**stage
        conv(f"{place}.0.shortcut", outputs, inputs)
        conv(f"{place}.0.conv1", inner, inputs)
        conv(f"{place}.0.conv2", inner, inner, 3)
        conv(f"{place}.0.conv3", outputs, inner)
        inputs = outputs
    anchors = 15 if kind == "detectron2-c4" else 12
    scores = 24 if kind == "bua-caffe-pth" else anchors
    boxes = 4 * (OBJECTS + (kind == "bua-caffe-pth"))
    none = kind != "detectron2-c4"
    rpn, box = "proposal_generator.rpn_head", "roi_heads.box_predictor"
    for name, outputs, inputs in (
        (f"{rpn}.conv", 16, 1024),
        (f"{rpn}.objectness_logits", scores, 16),
        (f"{rpn}.anchor_deltas", 4 * anchors, 16),
        (f"{box}.cls_score", OBJECTS + 1, 2048),
        (f"{box}.bbox_pred", boxes, 2048),
        (heads.hidden, 8, 2048 + 6),
        (heads.logits, ATTRIBUTES + none, 8),
    ):
        shape = (3, 3) if name.endswith(".conv") else (1, 1)
        weight = torch.randn(outputs, inputs, *(shape if name.startswith(rpn) else ())) / inputs**0.5
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight, torch.arange(float(outputs))
    tensors[f"{heads.embedding}.weight"] = torch.arange(float(OBJECTS + 1))[:, None].repeat(1, 6)
    if kind != "detectron2-c4":
        tensors["proposal_generator.anchor_generator.cell_anchors.0"] = torch.arange(48.0).reshape(12, 4)
    return tensors


def converted(folder: Path, kind: str, tensors: dict[str, Tensor]) -> tuple[Path, tuple[str, ...]]:
    """The model's folder, and the converter's notes."""
    for name, number in (("objects", OBJECTS), ("attributes", ATTRIBUTES)):
        (folder / name).write_text("\n".join(f"{name} {n},synonym" for n in range(number)))
    torch.save({"model": tensors}, folder / "published.pth")
    settings = [f"objects={folder / 'objects'}", f"attributes={folder / 'attributes'}"]
    return folder / "model", convert(folder / "published.pth", folder / "model", kind, settings).notes


def rows(detector: Detector) -> tuple[list[float], list[float], list[float], list[float]]:
    """The biases of classes and attributes, the first number of each class's box and embedding."""
    assert detector.head.attributes is not None
    head: Any = detector.head
    return (
        head.classes.bias.tolist(),
        head.attributes.logits.bias.tolist(),
        head.boxes.bias[::4].tolist(),
        head.attributes.embedding.weight[:, 0].tolist(),
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("hf-frcnn-vg", ([5, 0, 1, 2, 3, 4], [3, 0, 1, 2], [0, 0, 4, 8, 12, 16], [5, 0, 1, 2, 3, 4])),
        ("bua-caffe-pth", ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3], [0, 4, 8, 12, 16, 20], [0, 1, 2, 3, 4, 5])),
        ("detectron2-c4", ([5, 0, 1, 2, 3, 4], [0, 1, 2], [0, 0, 4, 8, 12, 16], [5, 0, 1, 2, 3, 4])),
    ],
)
def test_background_and_none_come_first_after_conversion(tmp_path: Path, kind: str, expected: Any) -> None:
    model, notes = converted(tmp_path, kind, published(kind))
    loaded = load_detector(model)
    assert rows(loaded.detector) == expected
    assert loaded.object_names == tuple(f"objects {n}" for n in range(OBJECTS))
    assert loaded.attribute_names == tuple(f"attributes {n}" for n in range(ATTRIBUTES))
    assert not any("no place" in note for note in notes)
    if kind != "detectron2-c4":
        assert loaded.detector.config.cell_anchors[1] == (4, 5, 6, 7)
    described = read_model_json(model)
    assert described["source"]["kind"] == kind
    assert len(described["source"]["sha256"]["published.pth"]) == 64
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    assert loaded.detector.detect([image])[0].boxes.shape[1] == 4


def test_the_same_heads_give_hugging_faces_logits_in_another_order(tmp_path: Path) -> None:
    """MILVLG's softmax over two channels is the sigmoid of Hugging Face's one, which is their difference."""
    tensors = published("bua-caffe-pth")
    theirs = {}
    for name, tensor in tensors.items():
        renamed = (
            name.replace("cls_embed.", "cls_embedding.")
            .replace("attr_linear1", "fc_attr")
            .replace("attr_linear2", "attr_score")
        )
        if "cls_score" in name or "embed" in name or "attr_linear2" in name:
            tensor = tensor.roll(-1, 0)
        elif "bbox_pred" in name:
            tensor = tensor[4:]
        elif "objectness" in name:
            tensor = tensor[12:] - tensor[:12]
        theirs[renamed] = tensor
    (tmp_path / "mil").mkdir()
    (tmp_path / "hf").mkdir()
    mil = load_detector(converted(tmp_path / "mil", "bua-caffe-pth", tensors)[0]).detector
    hf = load_detector(converted(tmp_path / "hf", "hf-frcnn-vg", theirs)[0]).detector
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        maps = mil.backbone(images)
        torch.testing.assert_close(maps, hf.backbone(images))
        for ours, other in zip(mil.rpn(maps)[:2], hf.rpn(maps)[:2], strict=True):
            torch.testing.assert_close(ours, other, atol=1e-4, rtol=1e-4)
        boxes = [torch.tensor([[3.0, 5.0, 60.0, 40.0], [8.0, 24.0, 40.0, 56.0]])]
        outputs = [d.head(d.head.pool(maps, boxes)) for d in (mil, hf)]
        for ours, other in zip(outputs[0][:2], outputs[1][:2], strict=True):
            torch.testing.assert_close(ours, other)
        torch.testing.assert_close(outputs[0][2][:, 1:], outputs[1][2][:, 1:])
        probs = outputs[0][1].softmax(1)
        counted, ignored = (d.attribute_probs(outputs[0][0], probs) for d in (mil, hf))
    torch.testing.assert_close(counted / counted.sum(1, keepdim=True), ignored)


def test_a_tensor_too_many_is_named_and_one_too_few_or_mis_shaped_refused(tmp_path: Path) -> None:
    tensors = published("hf-frcnn-vg")
    for name, change in (("many", {"extra.weight": torch.ones(2)}), ("few", {}), ("shape", {})):
        (tmp_path / name).mkdir()
        changed = tensors | change
        if name == "few":
            del changed["roi_heads.box_predictor.fc_attr.bias"]
        if name == "shape":
            changed["proposal_generator.rpn_head.conv.weight"] = torch.ones(16, 1023, 3, 3)
        if name == "many":
            notes = converted(tmp_path / name, "hf-frcnn-vg", changed)[1]
            assert any("extra.weight [2]" in note for note in notes)
        else:
            match = (
                r"fc_attr.bias' is missing" if name == "few" else r"rpn.conv.weight' should have the shape"
            )
            with pytest.raises(CheckpointError, match=match):
                converted(tmp_path / name, "hf-frcnn-vg", changed)
            assert not (tmp_path / name / "model").exists()


def test_a_detector_without_attribute_head_has_no_attributes(tmp_path: Path) -> None:
    kept = {n: t for n, t in published("detectron2-c4").items() if "attribute_predictor" not in n}
    loaded = load_detector(converted(tmp_path, "detectron2-c4", kept)[0])
    assert loaded.attribute_names == ()
    assert loaded.detector.num_attributes == 0


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors = published("hf-frcnn-vg")
    tensors["backbone.stem.conv1.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        converted(tmp_path, "hf-frcnn-vg", tensors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attributes", "objects", "published.pth"]


def test_settings_and_folders_are_checked_first(tmp_path: Path) -> None:
    source = tmp_path / "x.pth"
    with pytest.raises(InputNotFoundError, match=r"x\.pth: no such file"):
        convert(source, tmp_path / "out", "hf-frcnn-vg")
    source.touch()
    with pytest.raises(UsageError, match=r"takes objects=\.\.\., attributes=\.\.\."):
        convert(source, tmp_path / "out", "hf-frcnn-vg", ["object=x"])
    with pytest.raises(UsageError, match="exists already"):
        convert(source, tmp_path, "hf-frcnn-vg")


def test_visual_genomes_names_are_the_first_of_their_synonyms(tmp_path: Path) -> None:
    objects, attributes = names_for("object", 1600, ""), names_for("attribute", 400, "")
    assert (objects[0], len(set(objects)), len(set(attributes))) == ("yolk", 1600, 400)
    assert not any("," in name for name in objects + attributes)
    with pytest.raises(CheckpointError, match=r"the weights know 1595 objects, .* names 1600"):
        names_for("object", 1595, "")
    (tmp_path / "names").write_text("cat\ndog\ncat\n")
    assert names_for("object", 3, str(tmp_path / "names")) == ["cat", "dog", "cat (2)"]
