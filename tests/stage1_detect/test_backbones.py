import copy
from typing import Any

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


TINY: dict[str, Any] = {"blocks": (1, 2, 1, 2), "width_per_group": 4}


@pytest.mark.parametrize("size", [(64, 48), (63, 49), (600, 800), (33, 31)])
def test_the_caffe_stem_rounds_up_without_a_border(size: tuple[int, int]) -> None:
    config = DetectorConfig.resnet_c4("bottleneck", stem_pool="ceil", stride_in_1x1=True, **TINY)
    with torch.device("meta"):
        backbone, _ = build_backbone(config)
        feature_map = backbone(torch.zeros(1, 3, *size))

    def halved(side: int) -> int:
        return (side + 1) // 2

    stem = [halved(halved(side) - 3) + 1 for side in size]
    assert feature_map.shape[2:] == tuple(halved(halved(side)) for side in stem)


def test_a_dilated_conv5_keeps_the_maps_size_and_sees_twice_as_far() -> None:
    config = DetectorConfig.resnet_c4("bottleneck", conv5_dilation=2, stride_in_1x1=True, **TINY)
    conv5 = build_backbone(config)[1]
    assert conv5 is not None
    assert isinstance(conv5, torch.nn.Sequential)
    assert [block.get_submodule("conv2").dilation for block in conv5] == [(2, 2), (2, 2)]
    with torch.no_grad():
        assert conv5.eval()(torch.zeros(1, 1024, 14, 14)).shape == (1, 2048, 14, 14)


@pytest.mark.parametrize(("in_1x1", "strides"), [(True, (2, 1)), (False, (1, 2))])
def test_a_stages_stride_sits_where_it_is_told(in_1x1: bool, strides: tuple[int, int]) -> None:
    config = DetectorConfig.resnet_c4("bottleneck", stride_in_1x1=in_1x1, **TINY)
    backbone, conv5 = build_backbone(config)
    assert isinstance(backbone, ResNetC4)
    assert conv5 is not None
    for stage in (backbone.body[5], backbone.body[6], conv5):
        first = stage[0]  # type: ignore[index]
        assert (first.conv1.stride[0], first.conv2.stride[0]) == strides
        assert first.downsample[0].stride == (2, 2)


def test_mobilenet_ends_at_stride_sixteen() -> None:
    config = DetectorConfig(backbone="mobilenet_v2", widths=())
    backbone, conv5 = build_backbone(config)
    assert conv5 is None
    with torch.no_grad():
        assert backbone.eval()(torch.zeros(1, 3, 65, 64)).shape == (1, config.map_channels, 5, 4)


@pytest.mark.parametrize(
    "config",
    [
        DetectorConfig(),
        DetectorConfig.resnet_c4("bottleneck", **TINY),
        DetectorConfig(backbone="mobilenet_v2", widths=()),
    ],
)
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
