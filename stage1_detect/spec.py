"""What a job extracts, as one small record that travels to workers, and what the store will say of it.

Free of torch, so that a finished job can be recognised without loading a model. `extract.build_extractor`
turns the record into the network. (timm's names are the exception: what they are is asked of timm.)
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from stage1_detect.box_tables import box_names, boxes_file
from stage1_detect.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ChannelOrder,
    DetectorConfig,
    Interpolation,
    SelectionConfig,
    SizeRounding,
)
from store_schema.artifacts import find_model_dir, model_fingerprint, read_model_json
from store_schema.errors import CheckpointError, ConfigError, InputNotFoundError
from store_schema.fingerprint import file_sha256, fingerprint
from store_schema.layout import Codec
from store_schema.metadata import BoxSource, FeatureDtype, StoreMetadata

TIMM = "timm:"
"""Before the name of a classifier of the timm library."""

CLASSIFIER_CHANNELS: dict[str, int] = {
    "mobilenet_v2": 1280,
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "resnet101": 2048,
    "resnet152": 2048,
}
"""Channels of the last feature map of torchvision's classifiers, which is D."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """An ImageNet classifier without its pool and linear layers, and what it expects of pixels."""

    name: str
    """torchvision's (of `CLASSIFIER_CHANNELS`), or `timm:` and timm's; for the latter see `timm_models.timm_config`."""
    short_side: int = 320
    """The network's short side in pixels; the long side follows, up to `long_side`."""
    long_side: int = 640
    channel_order: ChannelOrder = "rgb"
    pixel_mean: tuple[float, ...] = IMAGENET_MEAN
    pixel_std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bilinear_antialias"
    size_rounding: SizeRounding = "half_even"

    def __post_init__(self) -> None:
        if not is_classifier(self.name):
            raise ConfigError(
                f"classifier.name must be one of {sorted(CLASSIFIER_CHANNELS)} or {TIMM}NAME, not {self.name!r}"
            )
        if not 1 <= self.short_side <= self.long_side:
            raise ConfigError(
                f"classifier needs 1 <= short_side <= long_side, not {self.short_side} and {self.long_side}"
            )

    def preprocessing(self) -> dict[str, Any]:
        """What was done to the pixels, as JSON: it belongs to the weights and goes into a store's metadata."""
        return {name: value for name, value in asdict(self).items() if name != "name"}


def is_classifier(name: str) -> bool:
    """Whether a network of this name is a classifier, not a detector."""
    return name in CLASSIFIER_CHANNELS or name.startswith(TIMM)


def classifier_channels(name: str) -> int:
    """Channels of the last feature map, which is D. Errors: those of `timm_facts`."""
    if name.startswith(TIMM):
        from stage1_detect.timm_models import timm_facts  # loads torch, which no other name needs here

        return timm_facts(name).channels
    return CLASSIFIER_CHANNELS[name]


@dataclass(frozen=True, kw_only=True)
class GivenBoxesConfig:
    """Boxes from a table, or from a FastestDet COCO detector that runs beside the network."""

    path: str
    """A Parquet file with image_id, x1, y1, x2, y2, object and perhaps score; a tables folder (its objects);
    or FastestDet as .onnx."""
    max_regions: int = 36
    """The best of them by score."""
    score_thresh: float = 0.05
    nms_thresh: float = 0.5
    """Class by class; only for boxes that FastestDet finds: a table's are taken as they are."""
    whole_picture: bool = True
    """Put a box around the whole picture before the others, so that no picture is without a region."""

    def __post_init__(self) -> None:
        if self.max_regions < 1:
            raise ConfigError(f"boxes.max_regions must be at least 1, not {self.max_regions}")
        for name in ("score_thresh", "nms_thresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"boxes.{name} must lie in 0..1, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class ExtractorSpec:
    """Which regions, and which network makes their features."""

    mode: BoxSource = "proposal"
    """"proposal": the detector's proposals, features pooled from them. "refined": its regressed boxes, pooled
    again. "regressed": its regressed boxes beside the proposals' features, as Hugging Face and detectron2 give them.
    "grid": cells of a feature map. "given": boxes found elsewhere."""
    weights: str
    """A trained detector (model folder, checkpoint or run), or the weights file of `classifier`."""
    selection: SelectionConfig | None = None
    """Which proposals become regions; for "proposal", "refined" and "regressed"."""
    cells: tuple[int, int] | None = None
    """Rows and columns of the "grid"; a map of another size is averaged to it."""
    boxes: GivenBoxesConfig | None = None
    """Where the boxes of "given" come from."""
    classifier: ClassifierConfig | None = None
    """None: the weights are a detector of ours. For "grid" and "given" a classifier will do."""
    features: bool = True
    """Whether the store gets the features; without, it holds a detector's own boxes and labels alone."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.mode not in get_args(BoxSource):
            raise ConfigError(f"mode must be one of {get_args(BoxSource)}, not {self.mode!r}")
        needed = {"grid": "cells", "given": "boxes"}.get(self.mode, "selection")
        for name in ("selection", "cells", "boxes"):
            if (getattr(self, name) is not None) != (name == needed):
                state = "is needed" if name == needed else "has no effect"
                raise ConfigError(f"{name} {state} in mode {self.mode!r}")
        if self.classifier is not None and needed == "selection":
            raise ConfigError(
                f"mode {self.mode!r} needs a trained detector, {self.classifier.name} is a classifier; "
                "use mode 'grid' or 'given'"
            )
        if not self.features and needed != "selection":
            raise ConfigError(f"mode {self.mode!r} has no boxes of its own: without features nothing is left")
        if self.cells is not None and min(self.cells) < 1:
            raise ConfigError(f"cells must be positive, not {self.cells}")

    def store_metadata(
        self, *, feature_dtype: FeatureDtype = "float16", block_size: int = 256, codec: Codec = "none"
    ) -> StoreMetadata:
        """What a store of this extractor says of itself. Reads model.json and hashes the weights; no network.

        Errors: `InputNotFoundError` or `CheckpointError` where the weights or the boxes are not there or foreign.
        """
        source = _describe_classifier(self) if self.classifier is not None else _describe_detector(self)
        object_names, attribute_names = source.object_names, source.attribute_names
        if self.mode == "grid":
            object_names, attribute_names = (), ()
        elif self.boxes is not None:
            object_names, attribute_names = (
                box_names(self.boxes.path, whole_picture=self.boxes.whole_picture),
                (),
            )
        min_regions, max_regions = self._region_limits()
        feature_dim = source.map_channels if self.mode == "grid" else source.region_dim
        return StoreMetadata(
            feature_dim=feature_dim if self.features else 0,
            min_regions=min_regions,
            max_regions=max_regions,
            box_source=self.mode,
            detector=source.facts,
            selection=self._selection_facts(),
            object_names=object_names,
            attribute_names=attribute_names,
            feature_dtype=feature_dtype,
            block_size=block_size,
            codec=codec,
        )

    def _region_limits(self) -> tuple[int, int]:
        if self.cells is not None:
            number = self.cells[0] * self.cells[1]
            return number, number
        if self.boxes is not None:
            return int(self.boxes.whole_picture), self.boxes.max_regions
        assert self.selection is not None  # held by __post_init__
        return self.selection.min_regions, self.selection.max_regions

    def _selection_facts(self) -> dict[str, Any]:
        if self.cells is not None:
            return {"rows": self.cells[0], "columns": self.cells[1]}
        if self.boxes is not None:
            facts = {name: value for name, value in asdict(self.boxes).items() if name != "path"}
            file = boxes_file(self.boxes.path)
            return {**facts, "boxes": file.name, "boxes_sha256": file_sha256(file)}
        assert self.selection is not None  # held by __post_init__
        return asdict(self.selection)


def cells_for(num_regions: int) -> tuple[int, int]:
    """Rows and columns of a grid of about so many cells, as square as it can be: 16 gives 4 x 4, 12 gives 3 x 4."""
    if num_regions < 1:
        raise ConfigError(f"a grid needs at least one cell, not {num_regions}")
    rows = max(1, int(num_regions**0.5))
    return rows, round(num_regions / rows)


@dataclass(frozen=True)
class _Source:
    """What is known of the weights without loading them."""

    facts: dict[str, Any]
    map_channels: int
    region_dim: int
    object_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()


def _describe_detector(spec: ExtractorSpec) -> _Source:
    model_dir = find_model_dir(Path(spec.weights))
    described = read_model_json(model_dir)
    if described.get("task") != "detector":
        raise CheckpointError(f"{model_dir}: a detector expected, model.json says {described.get('task')!r}")
    config = DetectorConfig.from_dict(described["config"])
    facts = {
        "name": config.backbone,
        "fingerprint": model_fingerprint(model_dir),
        "path": str(model_dir),
        "preprocessing": config.preprocessing(),
    }
    return _Source(
        facts=facts,
        map_channels=config.map_channels,
        region_dim=config.feature_dim,
        object_names=tuple(described["object_names"]),
        attribute_names=tuple(described["attribute_names"]),
    )


def _describe_classifier(spec: ExtractorSpec) -> _Source:
    config = spec.classifier
    assert config is not None  # the caller asked
    path = Path(spec.weights)
    if not path.is_file():
        raise InputNotFoundError(f"{path}: no such file; expected the weights of {config.name}")
    facts = {
        "name": config.name,
        "fingerprint": classifier_fingerprint(path, config),
        "path": str(path),
        "preprocessing": config.preprocessing(),
    }
    channels = classifier_channels(config.name)
    return _Source(facts=facts, map_channels=channels, region_dim=channels)


def classifier_fingerprint(path: Path, config: ClassifierConfig) -> str:
    """What makes a classifier's features: its weights, its name and what it does to pixels."""
    return fingerprint({"weights": file_sha256(path), **asdict(config)})
