"""The detector as a task for the trainer: batches from the annotation tables, losses, scores.

Which pictures come when, which are mirrored and how large a batch is seen is a pure function of (seed, epoch,
place). The vocabulary is that of the training split and goes into `model.json`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage1_detect import transform
from stage1_detect.annotations import AnnotatedImages, read_annotations
from stage1_detect.config import TORCHVISION_SIZES, DetectorConfig
from stage1_detect.detection_metrics import evaluate
from stage1_detect.detector import Detector
from stage1_detect.losses import DetectionBatch, LossConfig, detection_losses
from stage1_detect.pictures import Picture, PictureSource
from stage1_detect.pretrained import BackboneConfig, freeze_backbone, load_backbone
from store_schema.coverage import detection_tables_fingerprint
from store_schema.errors import ButdError, ConfigError, UsageError
from store_schema.fingerprint import fingerprint
from store_schema.tables import table_path


@dataclass(frozen=True, kw_only=True)
class DetectionDataConfig:
    """How training pictures are drawn and read."""

    batch_size: int = 8
    seed: int = 0
    flip: bool = True
    """Mirror every other picture, left to right."""
    short_sides: tuple[int, ...] = ()
    """Multi-scale: each batch is seen at one of these short sides, with the model's long side as the limit; scores are
    always at the model's short side. Empty: so is training."""
    num_workers: int = 1
    """Decoding threads; 0 decodes between the steps."""
    cache_megabytes: float = 1024.0
    """Keep decoded pictures in memory when all of them take no more than this."""
    val_split: str = "val"
    max_eval_images: int = 500
    """Score on so many of the validation pictures; 0 for all."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"data.batch_size must be at least 1, not {self.batch_size}")
        for name in ("seed", "num_workers", "cache_megabytes", "max_eval_images"):
            if getattr(self, name) < 0:
                raise ConfigError(f"data.{name} must not be negative, it is {getattr(self, name)}")
        if any(side < 1 for side in self.short_sides):
            raise ConfigError(f"data.short_sides must be positive, they are {list(self.short_sides)}")


_SCALES = 1
"""Keeps the generator of sizes apart from that of mirrored pictures."""


class DetectionTask:
    """Trains a detector; has the members that `pipeline.training.task.Task` asks for."""

    name = "detector"
    best_metric = "map"
    higher_is_better = True

    def __init__(
        self,
        *,
        config: DetectorConfig,
        data: DetectionDataConfig,
        losses: LossConfig,
        backbone: BackboneConfig,
        train: AnnotatedImages,
        val: AnnotatedImages,
        tables_fingerprint: str,
        device: torch.device,
    ) -> None:
        self.config = config
        self.data = data
        self.batch_size = data.batch_size
        self.losses = losses
        self.backbone = backbone
        self._scales = [replace(config, short_side=side) for side in data.short_sides] or [config]
        self.train = train
        self.val = val
        self._tables_fingerprint = tables_fingerprint
        self._train_pictures = self._pictures(train)
        self._val_pictures = self._pictures(val)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(data.seed)
            self.model = Detector(
                config, num_objects=len(train.object_names), num_attributes=len(train.attribute_names)
            )
        self._backbone_source = load_backbone(self.model, backbone.weights) if backbone.weights else None
        self._fixed_norms = freeze_backbone(self.model, backbone)
        self.model.to(device).to(memory_format=torch.channels_last)

    def identity(self) -> dict[str, str]:
        """The model with its vocabulary, and the annotation tables."""
        described = self.describe()
        model = {name: described[name] for name in ("config", "object_names", "attribute_names")}
        return {"model": fingerprint(model), "tables": self._tables_fingerprint}

    def describe(self) -> dict[str, Any]:
        """What `load_detector` needs, and which pictures were trained on."""
        ids = "\n".join(self.train.image_ids).encode()
        return {
            "task": self.name,
            "config": self.config.to_dict(),
            "object_names": list(self.train.object_names),
            "attribute_names": list(self.train.attribute_names),
            "preprocessing": self.config.preprocessing(),
            **({"backbone_from": self._backbone_source} if self._backbone_source else {}),
            "trained_on": {
                "split": "train",
                "num_images": len(self.train),
                "image_ids_sha256": hashlib.sha256(ids).hexdigest(),
                "coco_ids": sorted(self.train.coco_ids),
                "tables": self._tables_fingerprint,
            },
        }

    def num_batches(self) -> int:
        """Whole batches in an epoch; the pictures left over, other ones each time, wait for the next."""
        return max(1, len(self.train) // self.data.batch_size)

    def batches(self, epoch: int, start: int) -> Iterator[DetectionBatch]:
        """The epoch's batches from position `start`, on the CPU."""
        order = np.random.default_rng([self.data.seed, epoch]).permutation(len(self.train))
        size = self.data.batch_size
        todo = [order[i * size : (i + 1) * size] for i in range(start, self.num_batches())]
        loaded = self._train_pictures.batches(todo)
        for place, (indices, pictures) in enumerate(zip(todo, loaded, strict=True), start):
            yield self._collate(indices, pictures, epoch, self._scale(epoch, place))

    def batch_ids(self, batch: DetectionBatch) -> list[str]:
        """Ids of the batch's pictures."""
        return list(batch.image_ids)

    def loss(self, batch: DetectionBatch, *, step: int, epoch: int) -> tuple[Tensor, int, dict[str, Tensor]]:
        """The batch's mean losses times its pictures, their number, and the mean of each part."""
        for norm in self._fixed_norms:  # train() of the whole model has set them to training
            norm.eval()
        parts = detection_losses(self.model, batch, self.losses)
        count = len(batch.image_ids)
        return (
            torch.stack(list(parts.values())).sum() * count,
            count,
            {n: p.detach() for n, p in parts.items()},
        )

    def evaluate(self) -> dict[str, float]:
        """Scores on the validation split: see `detection_metrics.evaluate`."""
        training = self.model.training
        self.model.eval()
        try:
            return evaluate(
                self.model, self.val, self._val_pictures, max_images=self.data.max_eval_images, batch_size=16
            )
        finally:
            self.model.train(training)

    def _pictures(self, images: AnnotatedImages) -> PictureSource:
        data = self.data
        return PictureSource(
            images.paths, images.sizes, num_workers=data.num_workers, cache_megabytes=data.cache_megabytes
        )

    def _collate(
        self, indices: NDArray[np.int64], pictures: list[Picture | None], epoch: int, scale: DetectorConfig
    ) -> DetectionBatch:
        samples = [
            _Sample.build(self.train, int(i), p, mirror=self._mirrored(epoch, int(i)))
            for i, p in zip(indices, pictures, strict=True)
            if p is not None
        ]
        if not samples:
            ids = [self.train.image_ids[i] for i in indices]
            raise ButdError(f"none of the pictures {ids} of a training batch can be read; the log says why")
        return _to_batch(samples, scale, len(self.train.attribute_names))

    def _scale(self, epoch: int, place: int) -> DetectorConfig:
        """At which size the epoch's batch at this place is seen."""
        if len(self._scales) == 1:
            return self._scales[0]
        drawn = np.random.default_rng([self.data.seed, epoch, place, _SCALES]).integers(len(self._scales))
        return self._scales[int(drawn)]

    def _mirrored(self, epoch: int, index: int) -> bool:
        return self.data.flip and bool(np.random.default_rng([self.data.seed, epoch, index]).random() < 0.5)


def build_detection_task(
    tables: str | Path,
    *,
    config: DetectorConfig,
    data: DetectionDataConfig,
    images_root: str | Path | None = None,
    losses: LossConfig | None = None,
    backbone: BackboneConfig | None = None,
    device: str | torch.device = "cpu",
) -> DetectionTask:
    """Read the tables' training and validation splits and set up a detector, but for a given backbone at random.

    Errors: `InputNotFoundError`, `TableError`; `UsageError` where a split is empty or holds no objects;
    `ConfigError` for one of torchvision's published detectors; those of `load_backbone`.
    """
    if config.backbone in TORCHVISION_SIZES:
        raise ConfigError(
            f"torchvision's COCO detector {config.backbone!r} is used as it was published, it is not trained here; "
            "train a detector with another backbone"
        )
    train = read_annotations(tables, "train", images_root=images_root)
    if not train.object_names:
        raise UsageError(f"{table_path(tables, 'objects')} names no object of the split 'train'")
    val = read_annotations(
        tables,
        data.val_split,
        images_root=images_root,
        object_names=train.object_names,
        attribute_names=train.attribute_names,
    )
    return DetectionTask(
        config=config,
        data=data,
        losses=losses or LossConfig(),
        backbone=backbone or BackboneConfig(),
        train=train,
        val=val,
        tables_fingerprint=detection_tables_fingerprint(Path(tables)),
        device=torch.device(device),
    )


@dataclass(frozen=True)
class _Sample:
    """A training picture, mirrored or not, with its objects in its own pixels."""

    image_id: str
    picture: Picture
    boxes: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    attributes: NDArray[np.bool_]

    @classmethod
    def build(cls, images: AnnotatedImages, index: int, picture: Picture, *, mirror: bool) -> "_Sample":
        objects = images.objects(index)
        boxes = objects.boxes
        if mirror:
            picture = picture[:, ::-1]
            boxes = boxes.copy()
            boxes[:, [0, 2]] = picture.shape[1] - boxes[:, [2, 0]]
        class_ids = np.where(objects.crowd, 0, objects.object_ids + 1)
        attributes = objects.attributes & ~objects.crowd[:, None]
        return cls(images.image_ids[index], picture, boxes, class_ids, objects.crowd, attributes)


def _to_batch(samples: list[_Sample], config: DetectorConfig, num_attributes: int) -> DetectionBatch:
    """Resize, normalise and pad; pictures at the top left, objects at the front of their slots."""
    cpu = torch.device("cpu")
    sizes = tuple(transform.network_size(s.picture.shape[0], s.picture.shape[1], config) for s in samples)
    slots = max(len(s.boxes) for s in samples)
    boxes = torch.zeros(len(samples), slots, 4)
    class_ids = torch.zeros(len(samples), slots, dtype=torch.int64)
    crowd = torch.zeros(len(samples), slots, dtype=torch.bool)
    attributes = torch.zeros(len(samples), slots, num_attributes)
    for i, (sample, (height, width)) in enumerate(zip(samples, sizes, strict=True)):
        n = len(sample.boxes)
        scale = torch.tensor([width / sample.picture.shape[1], height / sample.picture.shape[0]])
        boxes[i, :n] = torch.from_numpy(sample.boxes) * scale.repeat(2)
        class_ids[i, :n] = torch.from_numpy(sample.class_ids)
        crowd[i, :n] = torch.from_numpy(sample.crowd)
        owned = torch.from_numpy(sample.attributes).float()
        attributes[i, :n] = owned / owned.sum(1, keepdim=True).clamp(min=1)
    if len(set(sizes)) == 1:
        images = transform.to_network([s.picture for s in samples], config, cpu)
    else:
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        images = torch.zeros(len(samples), 3, height, width).contiguous(memory_format=torch.channels_last)
        for i, (sample, (h, w)) in enumerate(zip(samples, sizes, strict=True)):
            images[i : i + 1, :, :h, :w] = transform.to_network([sample.picture], config, cpu)
    return DetectionBatch(
        images, sizes, boxes, class_ids, crowd, attributes, tuple(s.image_id for s in samples)
    )
