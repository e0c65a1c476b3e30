"""The detector's numbers: one assembly, and this record says which detector it becomes.

Plain JSON and TOML types only, so that a configuration travels as it is in `model.json`, in a run's
`config.toml` and in a store's metadata. Training's own numbers are in `losses.py` and `detection_task.py`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from store_schema.errors import ConfigError

BackboneName = Literal[
    "small",
    "mobilenet_v2",
    "resnet18",
    "resnet50",
    "resnet101",
    "resnet152",
    "bottleneck",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
]
"""The last four are torchvision's COCO detectors as they are, of which only sizes and detection_... are settings."""
HeadName = Literal["fc", "conv5"]
StemPool = Literal["padded", "ceil"]
PoolerName = Literal["roi_align", "roi_pool"]
ChannelOrder = Literal["rgb", "bgr"]
Interpolation = Literal["bilinear", "bilinear_antialias", "bilinear_exact", "bicubic_antialias"]
SizeRounding = Literal["half_even", "half_up", "floor"]
Objectness = Literal["sigmoid", "softmax"]
BoxConvention = Literal["continuous", "inclusive"]
EqualScores = Literal["index", "torch_sort", "numpy_argsort"]
NoAttribute = Literal["absent", "counted", "ignored"]
SelectionRule = Literal["class_nms", "max_nms"]
RegionOrder = Literal["score", "proposal"]

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

TORCHVISION_SIZES: dict[BackboneName, tuple[int, int]] = {
    "fasterrcnn_resnet50_fpn": (800, 1333),
    "fasterrcnn_resnet50_fpn_v2": (800, 1333),
    "fasterrcnn_mobilenet_v3_large_fpn": (800, 1333),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (320, 640),
}
"""Short and long side of torchvision's detectors."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Which detector. The defaults are the demo's: trained from scratch on 128-pixel scenes."""

    backbone: BackboneName = "small"
    widths: tuple[int, ...] = (24, 48, 64, 96)
    """Channels of the small backbone at strides 2, 4, 8 and 8; empty for a ResNet."""
    head: HeadName = "fc"
    """"fc": a linear layer on the pooled map. "conv5": the ResNet's last stage on it, then the mean (C4)."""
    blocks: tuple[int, ...] = ()
    """Residual blocks of the four stages; for "bottleneck", a ResNet or ResNeXt without a name of its own."""
    groups: int = 1
    width_per_group: int = 64
    stem_pool: StemPool = "padded"
    """"padded": 3x3/2 with a border of one cell. "ceil": without border, sizes rounded up, as in Caffe."""
    stride_in_1x1: bool = False
    """A stage's stride sits in its first 1x1 convolution, as in Caffe; else in the 3x3."""
    conv5_dilation: int = 1
    """1: conv5 has stride 2. 2: stride 1 and its 3x3 convolutions are dilated."""

    short_side: int = 128
    """The network's short side in pixels; the long side follows, up to `long_side`."""
    long_side: int = 256
    channel_order: ChannelOrder = "rgb"
    pixel_mean: tuple[float, ...] = (127.5, 127.5, 127.5)
    """Subtracted from 0..255, in the network's channel order; then divided by `pixel_std`."""
    pixel_std: tuple[float, ...] = (64.0, 64.0, 64.0)
    interpolation: Interpolation = "bilinear_antialias"
    """"bilinear_exact": both axes by the exact scale, also where the size was rounded, as OpenCV does."""
    size_rounding: SizeRounding = "half_even"
    """Of the network's size: as OpenCV, as Hugging Face, as torchvision."""

    anchor_sizes: tuple[float, ...] = (24.0, 36.0, 54.0)
    """Square roots of the anchors' areas, in network pixels."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width."""
    cell_anchors: tuple[tuple[float, ...], ...] = ()
    """In place of sizes and ratios: boxes (x1, y1, x2, y2) around the upper left corner of a cell."""
    rpn_stride: int = 2
    """Anchors sit on every n-th cell of the feature map."""
    rpn_channels: int = 64
    rpn_pre_nms_train: int = 400
    rpn_pre_nms_test: int = 300
    rpn_post_nms_train: int = 100
    rpn_post_nms_test: int = 64
    rpn_nms_thresh: float = 0.7
    rpn_min_size: float = 2.0
    """Proposals with a side below it are dropped; in network pixels, with "inclusive" boxes in original ones."""
    rpn_min_size_kept: bool = True
    """Whether a side of just that size is enough."""
    rpn_objectness: Objectness = "sigmoid"
    """"softmax": two channels an anchor, all backgrounds first."""
    box_convention: BoxConvention = "continuous"
    """"inclusive": x2 and y2 are the last pixels, as in Caffe. Sizes count one more, boxes end at size - 1, an overlap
    of just the threshold suppresses, and proposals that are too small go before the best are taken, not after."""
    equal_scores: EqualScores = "index"
    """Which of two regions with one probability of a class is thinned first. The releases leave it to a sort that is
    not stable, whose order is the machine's ("torch_sort": `sort(descending=True)`; "numpy_argsort":
    `argsort()[::-1]`): the same call gives their regions on the same machine, where probabilities round to 1."""
    clamp_deltas: bool = True
    """A box grows at most 62.5 times, so that an untrained head cannot overflow exp."""

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
    no_attribute: NoAttribute = "absent"
    """A first column "none" of the attribute head. "counted": it has its share of the probability; "ignored": not."""
    background_embedding: bool = False
    """The attribute head sees background where that is the best class; else always the best object."""

    detection_score_thresh: float = 0.05
    detection_nms_thresh: float = 0.5
    detection_vote_iou: float = 0.0
    """A refined box becomes the mean, weighted by score, of those of its class that overlap it by so much; 0: it stays.
    For detections alone: the store's regions are proposals. Source: Gidaris and Komodakis 2015, arXiv 1505.01749."""
    max_detections: int = 100

    def __post_init__(self) -> None:
        for name, choices in (
            ("backbone", BackboneName),
            ("head", HeadName),
            ("pooler", PoolerName),
            ("stem_pool", StemPool),
            ("channel_order", ChannelOrder),
            ("interpolation", Interpolation),
            ("size_rounding", SizeRounding),
            ("rpn_objectness", Objectness),
            ("box_convention", BoxConvention),
            ("equal_scores", EqualScores),
            ("no_attribute", NoAttribute),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"detector.{name} must be one of {get_args(choices)}, not {getattr(self, name)!r}"
                )
        self._check_combination()
        for name, size in (("pixel_mean", 3), ("pixel_std", 3), ("box_weights", 4)):
            if len(getattr(self, name)) != size:
                raise ConfigError(f"detector.{name} needs {size} numbers, it has {len(getattr(self, name))}")
        self._check_anchors()
        for name in (
            "rpn_nms_thresh",
            "detection_nms_thresh",
            "detection_score_thresh",
            "detection_vote_iou",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"detector.{name} must lie in 0..1, not {getattr(self, name)}")
        for name in _POSITIVE:
            if min(_as_tuple(getattr(self, name)), default=1) <= 0:
                raise ConfigError(f"detector.{name} must be positive, not {getattr(self, name)}")
        if self.short_side > self.long_side:
            raise ConfigError(f"detector.short_side {self.short_side} exceeds long_side {self.long_side}")

    @property
    def anchors_per_cell(self) -> int:
        """Sizes times ratios, or as many as are listed."""
        return len(self.cell_anchors) or len(self.anchor_sizes) * len(self.anchor_ratios)

    @property
    def map_channels(self) -> int:
        """Channels of the backbone's map."""
        if self.backbone == "small":
            return self.widths[-1]
        if self.backbone in TORCHVISION_SIZES:
            return 256
        return {"mobilenet_v2": 96, "resnet18": 256}.get(self.backbone, 1024)

    @property
    def feature_dim(self) -> int:
        """D, the size of a region's feature."""
        return self.hidden_dim or 2 * self.map_channels

    def preprocessing(self) -> dict[str, Any]:
        """What was done to the pixels, as JSON: it belongs to the weights and goes into a store's metadata."""
        names = (
            "channel_order",
            "pixel_mean",
            "pixel_std",
            "short_side",
            "long_side",
            "interpolation",
            "size_rounding",
        )
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
        return cls(**{name: _as_tuples(value) for name, value in values.items()})

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

    @classmethod
    def torchvision(cls, name: BackboneName, **changes: Any) -> Self:  # noqa: ANN401
        """One of torchvision's COCO detectors; changes only to sizes and detection_... ."""
        short_side, long_side = TORCHVISION_SIZES[name]
        values: dict[str, Any] = {
            "backbone": name,
            "short_side": short_side,
            "long_side": long_side,
            **_TORCHVISION,
        }
        return cls(**(values | changes))

    def _check_torchvision(self) -> None:
        """Refuse what torchvision's own modules would not read."""
        usual = {
            **{field.name: field.default for field in fields(self)},
            "backbone": self.backbone,
            **_TORCHVISION,
        }
        free = {"short_side", "long_side", "max_detections"} | {
            n for n in usual if n.startswith("detection_")
        }
        for name, value in usual.items():
            if name not in free and getattr(self, name) != value:
                raise ConfigError(
                    f"detector.{name} has no effect with {self.backbone}, which is torchvision's: leave it {value!r}"
                )

    def _check_anchors(self) -> None:
        if self.cell_anchors:
            if self.anchor_sizes or self.anchor_ratios:
                raise ConfigError(
                    "detector.anchor_sizes and anchor_ratios have no effect with cell_anchors: leave them empty"
                )
            if any(len(anchor) != 4 for anchor in self.cell_anchors):
                raise ConfigError("detector.cell_anchors needs 4 numbers for each anchor")
        elif not self.anchor_sizes or not self.anchor_ratios:
            raise ConfigError(
                "detector.anchor_sizes and detector.anchor_ratios need at least one number each"
            )

    def _check_combination(self) -> None:
        """Refuse options that the chosen parts would ignore."""
        if self.backbone in TORCHVISION_SIZES:
            self._check_torchvision()
        if self.backbone == "small":
            if len(self.widths) != 4:
                raise ConfigError(
                    f"detector.widths needs 4 numbers for the small backbone, it is {self.widths}"
                )
            if self.head != "fc":
                raise ConfigError("the small backbone has no conv5: set detector.head to 'fc'")
        elif self.widths:
            raise ConfigError(f"detector.widths has no effect with {self.backbone}: leave it empty")
        if self.backbone == "mobilenet_v2" and self.head != "fc":
            raise ConfigError("mobilenet_v2 has no conv5: set detector.head to 'fc'")
        if (self.backbone == "bottleneck") != (len(self.blocks) == 4):
            raise ConfigError(
                f"detector.blocks needs 4 numbers for 'bottleneck' and is empty otherwise; it is {self.blocks} "
                f"with {self.backbone!r}"
            )
        if self.backbone != "bottleneck" and (self.groups, self.width_per_group) != (1, 64):
            raise ConfigError("detector.groups and width_per_group are for 'bottleneck'")
        if self.backbone in ("small", "mobilenet_v2", "resnet18") and (
            self.stem_pool != "padded" or self.stride_in_1x1 or self.conv5_dilation != 1
        ):
            raise ConfigError(
                "detector.stem_pool, stride_in_1x1 and conv5_dilation are for ResNets of bottlenecks, "
                f"not for {self.backbone!r}"
            )
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
    rule: SelectionRule = "class_nms"
    """"class_nms": the paper's, each class thinned among the proposals. "max_nms": Hugging Face's, the regressed boxes
    of the best objects thinned all together, the overlap raised in steps of .1 to .9 until there are enough."""
    order: RegionOrder = "score"
    """"proposal": as in the published files, the detector's order where neither limit applies."""

    def __post_init__(self) -> None:
        for name, choices in (("rule", SelectionRule), ("order", RegionOrder)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"selection.{name} must be one of {get_args(choices)}, not {getattr(self, name)!r}"
                )
        if self.rule == "max_nms" and (self.score_thresh, self.order) != (0.2, "score"):
            raise ConfigError(
                "selection.score_thresh and order have no effect with the rule 'max_nms': leave them out"
            )
        if not 0 <= self.min_regions <= self.max_regions or self.max_regions < 1:
            raise ConfigError(
                "selection needs 0 <= min_regions <= max_regions and max_regions >= 1, "
                f"not {self.min_regions} and {self.max_regions}"
            )
        for name in ("score_thresh", "nms_thresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"selection.{name} must lie in 0..1, not {getattr(self, name)}")


_TORCHVISION: dict[str, Any] = {
    "widths": (),
    "pixel_mean": IMAGENET_MEAN,
    "pixel_std": IMAGENET_STD,
    "interpolation": "bilinear",
    "size_rounding": "floor",
    "hidden_dim": 1024,
    "class_agnostic_boxes": False,
}

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
    "blocks",
    "groups",
    "width_per_group",
    "conv5_dilation",
)


def _as_tuple(value: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return value if isinstance(value, tuple) else (value,)


def _as_tuples(value: Any) -> Any:  # noqa: ANN401
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


def _as_json(value: Any) -> Any:  # noqa: ANN401
    return [_as_json(item) for item in value] if isinstance(value, tuple) else value
