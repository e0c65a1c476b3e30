"""Stage one as the pipeline uses it: regions of pictures into a store, and the extractor that a model names.

A model of stage two carries what made its features (detector, selection, boxes), as does a store's metadata.
From that the same extractor is built again, so that `butd caption photo.jpg` and `butd evaluate` can make the
regions that a model needs.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stage1_detect.config import SelectionConfig
from stage1_detect.images import load_image
from stage1_detect.jobs import JobConfig, JobSummary, detect_to_store
from stage1_detect.sources import find_images
from stage1_detect.spec import ClassifierConfig, ExtractorSpec, GivenBoxesConfig, is_classifier
from store_schema.errors import CheckpointError, StoreMismatchError, UsageError
from store_schema.records import ImageRecord

logger = logging.getLogger(__name__)


def spec_named_by(
    info: Mapping[str, Any], *, weights: str | None = None, boxes: str | None = None, device: str = "cpu"
) -> ExtractorSpec:
    """Build the extractor that made a model's features.

    Args:
        info: with "detector", "selection" and "box_source", as in a model's model.json.
        weights: where the detector's weights lie now, if not where the model says.
        boxes: what gives the boxes of a model that was trained on given ones.
        device: where the network runs.

    Errors: `UsageError` where given boxes are needed and not named; `StoreMismatchError` where the weights are
    other than those of the model, naming both.
    """
    detector, selection, mode = (
        info.get("detector"),
        dict(info.get("selection") or {}),
        info.get("box_source"),
    )
    if (detector is None or mode is None) and info.get("feature_dim"):
        raise UsageError(
            "this model was converted and does not say which detector made its features; make a store with that "
            "detector ('butd detect') and name it with --store"
        )
    if detector is None or mode is None:
        raise UsageError(
            "this model sees no regions: nothing can be extracted for it from picture files; name a store's "
            "pictures with --store"
        )
    path = weights or detector.get("path")
    if not path:
        raise CheckpointError(
            f"the model does not say where its detector {detector['name']} lies; name it with --weights, or a store "
            "of its regions with --store"
        )
    classifier = None
    if Path(path).is_file() and is_classifier(detector["name"]):
        classifier = ClassifierConfig(name=detector["name"], **_tuples(detector["preprocessing"]))
    spec = ExtractorSpec(
        mode=mode,
        weights=str(path),
        selection=SelectionConfig(**selection) if mode in ("proposal", "refined", "regressed") else None,
        cells=(selection["rows"], selection["columns"]) if mode == "grid" else None,
        boxes=_given_boxes(selection, boxes) if mode == "given" else None,
        classifier=classifier,
        device=device,
    )
    found = spec.store_metadata().detector["fingerprint"]
    if found != detector["fingerprint"]:
        raise StoreMismatchError(
            f"the model was trained on regions of the detector {detector['fingerprint']}, but the weights at {path} "
            f"are {found}; name the model's own detector with --weights"
        )
    return spec


def make_store(
    images: Path,
    store: Path,
    spec: ExtractorSpec,
    *,
    images_root: Path | None = None,
    split: str | None = None,
) -> JobSummary:
    """Extract the regions of all pictures of a source that the store lacks; see `detect_to_store`."""
    return detect_to_store(find_images(images, root=images_root, split=split), store, spec, JobConfig())


def extract_records(
    paths: Sequence[Path], image_ids: Sequence[str], spec: ExtractorSpec
) -> list[ImageRecord]:
    """Extract the regions of a few pictures in this process, without a store, in their order.

    Errors: `ImageReadError` for the first picture that cannot be read.
    """
    from stage1_detect.extract import build_extractor

    extractor = build_extractor(spec, spec.store_metadata().detector["fingerprint"])
    return [
        record
        for path, image_id in zip(paths, image_ids, strict=True)
        for record in extractor.extract([load_image(path)], [image_id])
    ]


def _given_boxes(selection: Mapping[str, Any], boxes: str | None) -> GivenBoxesConfig:
    if boxes is None:
        raise UsageError(
            f"the model was trained on given boxes (of {selection.get('boxes')}); name what gives boxes for these "
            "pictures with --boxes: a table or FastestDet as .onnx"
        )
    settings = {
        name: selection[name] for name in ("max_regions", "score_thresh", "nms_thresh", "whole_picture")
    }
    return replace(GivenBoxesConfig(path=boxes), **settings)


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
