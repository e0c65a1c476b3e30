"""The detector's numbers: one assembly, and this record says which detector it becomes.

Plain JSON and TOML types only, so that a configuration travels as it is in `model.json`, in a run's
`config.toml` and in a store's metadata. Training's own numbers are in `losses.py` and `detection_task.py`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from store_schema.errors import ConfigError

BackboneName = Literal["small", "resnet18", "resnet50", "resnet101"]
HeadName = Literal["fc", "conv5"]
PoolerName = Literal["roi_align", "roi_pool"]
ChannelOrder = Literal["rgb", "bgr"]
Interpolation = Literal["bilinear", "bilinear_antialias"]

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Which detector. The defaults are the demo's: trained from scratch on 128-pixel scenes."""

    backbone: BackboneName = "small"
    widths: tuple[int, ...] = (24, 48, 64, 96)
    """Channels of the small backbone at strides 2, 4, 8 and 8; empty for a ResNet."""
    head: HeadName = "fc"
    """"fc": a linear layer on the pooled map. "conv5": the ResNet's last stage on it, then the mean (C4)."""

    short_side: int = 128
    """The network's short side in pixels; the long side follows, up to `long_side`."""
    long_side: int = 256
    channel_order: ChannelOrder = "rgb"
    pixel_mean: tuple[float, ...] = (127.5, 127.5, 127.5)
    """Subtracted from 0..255, in the network's channel order; then divided by `pixel_std`."""
    pixel_std: tuple[float, ...] = (64.0, 64.0, 64.0)
    interpolation: Interpolation = "bilinear_antialias"

    anchor_sizes: tuple[float, ...] = (24.0, 36.0, 54.0)
    """Square roots of the anchors' areas, in network pixels."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width."""
    rpn_stride: int = 2
    """Anchors sit on every n-th cell of the feature map."""
    rpn_channels: int = 64
    rpn_pre_nms_train: int = 400
    rpn_pre_nms_test: int = 300
    rpn_post_nms_train: int = 100
    rpn_post_nms_test: int = 64
    rpn_nms_thresh: float = 0.7
    rpn_min_size: float = 2.0
    """Proposals with a side below it, in network pixels, are dropped."""

    pooler: PoolerName = "roi_align"
    pooler_size: int = 7
    pooler_sampling: int = 2
    """Samples a bin and axis of "roi_align"; 0 for "roi_pool"."""
    region_channels: int = 48
    """The map is reduced to so many channels before regions are pooled; 0: it is not (always so for "conv5")."""
    hidden_dim: int = 256
    """Size of the stored feature of an "fc" head; 0 for "conv5", where the ResNet decides."""
    class_agnostic_boxes: bool = True
    box_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)
    """Scale of the deltas (dx, dy, dw, dh) of the region head; the RPN's are not scaled."""
    class_embedding_dim: int = 32
    attribute_hidden_dim: int = 128

    detection_score_thresh: float = 0.05
    detection_nms_thresh: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        for name, choices in (
            ("backbone", BackboneName),
            ("head", HeadName),
            ("pooler", PoolerName),
            ("channel_order", ChannelOrder),
            ("interpolation", Interpolation),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"detector.{name} must be one of {get_args(choices)}, not {getattr(self, name)!r}"
                )
        self._check_combination()
        for name, size in (("pixel_mean", 3), ("pixel_std", 3), ("box_weights", 4)):
            if len(getattr(self, name)) != size:
                raise ConfigError(f"detector.{name} needs {size} numbers, it has {len(getattr(self, name))}")
        if not self.anchor_sizes or not self.anchor_ratios:
            raise ConfigError(
                "detector.anchor_sizes and detector.anchor_ratios need at least one number each"
            )
        for name in ("rpn_nms_thresh", "detection_nms_thresh", "detection_score_thresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"detector.{name} must lie in 0..1, not {getattr(self, name)}")
        for name in _POSITIVE:
            if min(_as_tuple(getattr(self, name)), default=1) <= 0:
                raise ConfigError(f"detector.{name} must be positive, not {getattr(self, name)}")
        if self.short_side > self.long_side:
            raise ConfigError(f"detector.short_side {self.short_side} exceeds long_side {self.long_side}")

    @property
    def anchors_per_cell(self) -> int:
        """Sizes times ratios."""
        return len(self.anchor_sizes) * len(self.anchor_ratios)

    def preprocessing(self) -> dict[str, Any]:
        """What was done to the pixels, as JSON: it belongs to the weights and goes into a store's metadata."""
        names = ("channel_order", "pixel_mean", "pixel_std", "short_side", "long_side", "interpolation")
        return {name: _as_json(getattr(self, name)) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON; `from_dict` takes it back."""
        return {name: _as_json(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from JSON or TOML values. Errors: `ConfigError` for an unknown key."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"unknown detector setting {unknown[0]!r}; known are {sorted(known)}")
        arguments: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        return cls(**arguments)

    @classmethod
    def resnet_c4(cls, backbone: BackboneName, **changes: Any) -> Self:  # noqa: ANN401  (fields of this class)
        """A C4 detector of torchvision's ResNet parts: conv1..conv4 shared, conv5 on each region."""
        values: dict[str, Any] = {
            "backbone": backbone,
            "widths": (),
            "head": "conv5",
            "short_side": 600,
            "long_side": 1000,
            "pixel_mean": IMAGENET_MEAN,
            "pixel_std": IMAGENET_STD,
            "interpolation": "bilinear",
            "anchor_sizes": (64.0, 128.0, 256.0, 512.0),
            "rpn_stride": 1,
            "rpn_channels": 512,
            "rpn_pre_nms_train": 12000,
            "rpn_pre_nms_test": 6000,
            "rpn_post_nms_train": 2000,
            "rpn_post_nms_test": 300,
            "rpn_min_size": 16.0,
            "pooler_size": 14,
            "region_channels": 0,
            "hidden_dim": 0,
            "class_agnostic_boxes": False,
            "class_embedding_dim": 256,
            "attribute_hidden_dim": 512,
        }
        return cls(**(values | changes))

    def _check_combination(self) -> None:
        """Refuse options that the chosen parts would ignore."""
        if self.backbone == "small":
            if len(self.widths) != 4:
                raise ConfigError(
                    f"detector.widths needs 4 numbers for the small backbone, it is {self.widths}"
                )
            if self.head != "fc":
                raise ConfigError("the small backbone has no conv5: set detector.head to 'fc'")
        elif self.widths:
            raise ConfigError(f"detector.widths has no effect with {self.backbone}: leave it empty")
        if self.head == "fc" and self.hidden_dim < 1:
            raise ConfigError(f"detector.hidden_dim must be positive for an 'fc' head, not {self.hidden_dim}")
        if self.head == "conv5" and (self.hidden_dim or self.region_channels):
            raise ConfigError(
                "detector.hidden_dim and region_channels have no effect with 'conv5': set them to 0"
            )
        if (self.pooler == "roi_pool") != (self.pooler_sampling == 0):
            raise ConfigError(
                "detector.pooler_sampling is for 'roi_align' (at least 1); with 'roi_pool' set it to 0"
            )


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """How many regions a picture keeps: 36 and 36 for a fixed number, 10 and 100 for the adaptive one."""

    min_regions: int
    max_regions: int
    score_thresh: float = 0.2
    nms_thresh: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.min_regions <= self.max_regions or self.max_regions < 1:
            raise ConfigError(
                "selection needs 0 <= min_regions <= max_regions and max_regions >= 1, "
                f"not {self.min_regions} and {self.max_regions}"
            )
        for name in ("score_thresh", "nms_thresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"selection.{name} must lie in 0..1, not {getattr(self, name)}")


_POSITIVE = (
    "widths",
    "short_side",
    "pixel_std",
    "anchor_sizes",
    "anchor_ratios",
    "rpn_stride",
    "rpn_channels",
    "rpn_pre_nms_train",
    "rpn_pre_nms_test",
    "rpn_post_nms_train",
    "rpn_post_nms_test",
    "pooler_size",
    "box_weights",
    "class_embedding_dim",
    "attribute_hidden_dim",
    "max_detections",
)


def _as_tuple(value: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return value if isinstance(value, tuple) else (value,)


def _as_json(value: Any) -> Any:  # noqa: ANN401
    return list(value) if isinstance(value, tuple) else value
