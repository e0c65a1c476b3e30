"""timm's classifiers: their own last maps, whatever a weights file calls its tensors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stage1_detect.classifier import load_classifier
from stage1_detect.spec import ClassifierConfig, ExtractorSpec
from stage1_detect.timm_models import timm_config, timm_facts
from store_schema.errors import CheckpointError, UsageError

timm = pytest.importorskip("timm", reason="timm is not installed")

SHARED = Path(__file__).resolve().parents[2] / "../shared/data/weights"
NAME = "timm:tf_efficientnet_lite0"
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def with_statistics(architecture: str) -> torch.nn.Module:
    """A network whose BatchNorm statistics are not those of a fresh one."""
    torch.manual_seed(0)
    network: torch.nn.Module = timm.create_model(architecture, pretrained=False)
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 64, 64))
    return network.eval()


def expected_map(network: torch.nn.Module, config: ClassifierConfig) -> torch.Tensor:
    """What timm itself gives of a picture that is not resized."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.pixel_mean, config.pixel_std))
    pixels = (torch.from_numpy(IMAGE).permute(2, 0, 1).float() - mean) / std
    with torch.inference_mode():
        features: torch.Tensor = network.forward_features(pixels[None])  # type: ignore[operator]
    return features


def found_map(path: Path, config: ClassifierConfig) -> torch.Tensor:
    classifier = load_classifier(path, config)
    with torch.inference_mode():
        return classifier.feature_map(classifier.prepare([IMAGE]))


@pytest.mark.parametrize("architecture", ["tf_efficientnet_lite0", "resnet18", "regnety_002", "resnetv2_50"])
def test_the_map_is_timms_own(tmp_path: Path, architecture: str) -> None:
    """Also where BatchNorm holds the activation (EfficientNet, RegNet), or precedes the convolution (ResNetV2)."""
    network = with_statistics(architecture)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "w.safetensors")
    config = timm_config(f"timm:{architecture}", short_side=64)
    expected = expected_map(network, config)
    found = found_map(tmp_path / "w.safetensors", config)
    assert found.shape[1] == timm_facts(config.name).channels
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_other_names_in_timms_order_will_do_with_or_without_the_classifying_layer(tmp_path: Path) -> None:
    network = with_statistics("tf_efficientnet_lite0")
    config = timm_config(NAME, short_side=64)
    renamed = {f"tensor{n}": value for n, value in enumerate(network.state_dict().values()) if value.ndim}
    torch.save(renamed, tmp_path / "with.pth")
    torch.save(dict(list(renamed.items())[:-2]), tmp_path / "without.pth")
    torch.save(dict(list(renamed.items())[:-3]), tmp_path / "short.pth")
    assert torch.equal(found_map(tmp_path / "with.pth", config), found_map(tmp_path / "without.pth", config))
    with pytest.raises(CheckpointError, match="tensors expected"):
        load_classifier(tmp_path / "short.pth", config)


def test_the_preprocessing_is_that_of_timms_weights() -> None:
    config = timm_config(NAME, short_side=224)
    assert config.pixel_mean == config.pixel_std == (127.5, 127.5, 127.5)
    assert (config.interpolation, config.short_side, config.long_side) == ("bicubic_antialias", 224, 448)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet19", "has no such model"),
        ("timm:vit_tiny_patch16_224", "takes no pictures of other sizes"),
        ("timm:mixer_b16_224", "take a convolutional network"),
    ],
)
def test_what_gives_no_map_of_any_picture_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        timm_facts(name)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared weights are not on this machine")
def test_published_efficientnet_weights_with_names_of_their_own_give_timms_map() -> None:
    path = SHARED / "efficientnet-lite0-57934424.pth"
    config = timm_config(NAME, short_side=64)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    published = torch.load(path, weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), published.values(), strict=True)))
    expected = expected_map(network, config)
    torch.testing.assert_close(
        found_map(path, config), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
    )
    spec = ExtractorSpec(weights=str(path), mode="grid", cells=(2, 2), classifier=config)
    assert spec.store_metadata().feature_dim == 1280
