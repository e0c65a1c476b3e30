import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from stage1_detect.backbones import ResNetC4, SmallBackbone, build_backbone, fold_batch_norm
from stage1_detect.config import DetectorConfig


def with_statistics(module: nn.Module) -> nn.Module:
    """Running statistics and scales as after training, so that folding them matters."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return module.eval()


@pytest.mark.parametrize("size", [(128, 128), (33, 70), (1, 1)])
def test_the_small_backbone_has_stride_four_rounded_up(size: tuple[int, int]) -> None:
    backbone = SmallBackbone((4, 6, 8, 10)).eval()
    assert backbone(torch.zeros(1, 3, *size)).shape == (1, 10, -(-size[0] // 4), -(-size[1] // 4))


def test_a_resnet_ends_before_conv5() -> None:
    """As torchvision's own layers one after the other."""
    torch.manual_seed(0)
    network = resnet18(weights=None).eval()
    images = torch.randn(1, 3, 64, 48)
    expected = nn.Sequential(*list(network.children())[:-3])(images)
    backbone = ResNetC4(network)
    assert torch.equal(backbone(images), expected)
    assert (backbone.channels, backbone.stride) == (256, 16)


@pytest.mark.parametrize("config", [DetectorConfig(), DetectorConfig.resnet_c4("resnet50")])
def test_folding_batch_norm_changes_only_rounding(config: DetectorConfig) -> None:
    torch.manual_seed(0)
    backbone = with_statistics(build_backbone(config)[0])
    folded = copy.deepcopy(backbone)
    fold_batch_norm(folded)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(images)
        torch.testing.assert_close(
            folded(images), expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-3
        )
