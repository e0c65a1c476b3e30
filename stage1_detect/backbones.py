"""From pictures to one feature map.

"small" is the demo's: residual blocks at strides 2, 4, 8, 8, whose deep map is brought back to stride 4 and
added to the shallow one, so that small objects keep their borders. A ResNet gives conv1..conv4 at stride 16
(C4), of torchvision's parts; its conv5 belongs to the region head. MobileNetV2 gives its blocks up to stride 16.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import mobilenet_v2, resnet

from stage1_detect.config import DetectorConfig


class SmallBackbone(nn.Module):
    """Stride 4, `widths[3]` channels; the deep path runs at stride 8."""

    stride = 4

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        stem, shallow, middle, deep = widths
        self.channels = deep
        self.shallow = nn.Sequential(
            *_conv_bn_relu(3, stem, stride=2), *_conv_bn_relu(stem, shallow, stride=2), _Residual(shallow)
        )
        self.deep = nn.Sequential(
            *_conv_bn_relu(shallow, middle, stride=2),
            _Residual(middle),
            *_conv_bn_relu(middle, deep),
            _Residual(deep),
        )
        self.lateral = nn.Conv2d(shallow, deep, 1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] to [B, C, h/4, w/4], sizes rounded up."""
        shallow = self.shallow(images)
        deep = self.deep(shallow)
        return F.relu(self.lateral(shallow) + F.interpolate(deep, size=shallow.shape[2:], mode="nearest"))


class ResNetC4(nn.Module):
    """conv1..conv4 of a torchvision ResNet: stride 16."""

    stride = 16
    stage_ends = (0, 4, 5, 6, 7)
    """Children of the body up to the stem, and to strides 4, 8 and 16."""

    def __init__(self, network: resnet.ResNet) -> None:
        super().__init__()
        self.body = nn.Sequential(
            network.conv1,
            network.bn1,
            network.relu,
            network.maxpool,
            network.layer1,
            network.layer2,
            network.layer3,
        )
        self.channels = network.fc.in_features // 2

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] to [B, C, h/16, w/16], sizes rounded up."""
        features: Tensor = self.body(images)
        return features


class MobileNetC4(nn.Module):
    """torchvision's MobileNetV2 up to its last block at stride 16; the names in it are those of its `features`."""

    stride = 16
    channels = 96
    stage_ends = (0, 2, 4, 7, 14)
    """As a ResNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mobilenet_v2(weights=None).features[:14]

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] to [B, 96, h/16, w/16], sizes rounded up."""
        features: Tensor = self.body(images)
        return features


def build_backbone(config: DetectorConfig) -> tuple[SmallBackbone | MobileNetC4 | ResNetC4, nn.Module | None]:
    """The backbone, and the ResNet's conv5 for a "conv5" head; weights drawn from torch's global generator."""
    match config.backbone:
        case "small":
            return SmallBackbone(config.widths), None
        case "mobilenet_v2":
            return MobileNetC4(), None
        case "resnet18":
            network = resnet.resnet18(weights=None)
        case "resnet50":
            network = resnet.resnet50(weights=None)
        case "resnet101":
            network = resnet.resnet101(weights=None)
        case "resnet152":
            network = resnet.resnet152(weights=None)
        case "bottleneck":
            network = resnet.ResNet(
                resnet.Bottleneck,
                list(config.blocks),
                groups=config.groups,
                width_per_group=config.width_per_group,
            )
        case _:
            raise AssertionError(config.backbone)  # torchvision's detectors are built by torchvision_parts
    _arrange(network, config)
    return ResNetC4(network), network.layer4 if config.head == "conv5" else None


def fold_batch_norm(module: nn.Module) -> None:
    """Fold every BatchNorm into the convolution registered just before it; for inference only, in place.

    timm's BatchNorm layers hold the activation that follows them: it stays.
    """
    previous: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and previous is not None and isinstance(previous[1], nn.Conv2d):
            setattr(module, previous[0], fuse_conv_bn_eval(previous[1], child))
            setattr(module, name, getattr(child, "act", nn.Identity()))
        else:
            fold_batch_norm(child)
        previous = (name, child)


def _arrange(network: resnet.ResNet, config: DetectorConfig) -> None:
    """Strides, dilation and the stem's pooling as configured; no weight changes."""
    if config.stem_pool == "ceil":
        network.maxpool = nn.MaxPool2d(3, 2, padding=0, ceil_mode=True)
    if config.conv5_dilation > 1:
        first = network.layer4[0]
        first.conv1.stride = first.conv2.stride = first.downsample[0].stride = (1, 1)
        for block in network.layer4:
            block.conv2.dilation = block.conv2.padding = (config.conv5_dilation, config.conv5_dilation)
    if config.stride_in_1x1:
        for stage in (network.layer2, network.layer3, network.layer4):
            first = stage[0]
            first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride


class _Residual(nn.Module):
    """relu(x + conv(relu(conv(x)))), both 3x3 with batch normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu_(self.bn1(self.conv1(x)))
        return torch.relu_(self.bn2(self.conv2(out)) + x)


def _conv_bn_relu(inputs: int, outputs: int, *, stride: int = 1) -> tuple[nn.Module, nn.Module, nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
