"""What differs between two stores: pictures, boxes, features, labels; of pictures that both have, region by region.

Regions are matched by their boxes, the best overlap first, so that another order or a few other boxes do not make
everything look changed. Features are compared as float32. Holds one picture of each store at a time.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store_schema.errors import UsageError
from store_schema.reader import RegionStore
from store_schema.records import ImageRecord

IOU_THRESH = 0.5


@dataclass(kw_only=True)
class StoreDiff:
    """The differences of store B from store A."""

    only_in_a: list[str]
    only_in_b: list[str]
    num_common: int
    metadata: dict[str, list[object]]
    """Fields that differ, with both values; of where the detector lies and which code wrote, nothing."""
    num_changed: int = 0
    """Common pictures in which anything differs."""
    first_changed: list[str] = field(default_factory=list)
    num_sizes_changed: int = 0
    num_matched: int = 0
    """Pairs of regions whose boxes overlap by an IoU of at least 0.5."""
    num_unmatched_a: int = 0
    num_unmatched_b: int = 0
    least_iou: float | None = None
    """Of matched regions."""
    largest_box_difference: float = 0.0
    """Of a corner of matched boxes, in pixels."""
    largest_feature_difference: float | None = None
    """None: features have other sizes, or nothing is matched."""
    typical_feature_difference: float | None = None
    """Median over matched regions of the mean absolute difference."""
    typical_feature_value: float | None = None
    """Median over the same regions of A's mean absolute feature, to see the differences against."""
    labels_changed: dict[str, int] = field(default_factory=dict)
    """Of matched regions, by kind."""
    commonest_label_changes: dict[str, list[tuple[str, str, int]]] = field(default_factory=dict)
    largest_score_difference: dict[str, float] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether both hold the same pictures with the same values, whatever their layout and metadata."""
        return not (self.only_in_a or self.only_in_b or self.num_changed)


def diff_stores(
    a: RegionStore, b: RegionStore, on_pictures: Callable[[int], object] = lambda number: None
) -> StoreDiff:
    """Compare two stores picture by picture. Errors: `UsageError` where both are empty."""
    if len(a) == 0 and len(b) == 0:
        raise UsageError(f"{a.path} and {b.path} hold no pictures: nothing to compare")
    in_b, in_a = b.image_ids.places(list(a.image_ids)) >= 0, a.image_ids.places(list(b.image_ids)) >= 0
    common = [image_id for image_id, there in zip(a.image_ids, in_b, strict=True) if there]
    diff = StoreDiff(
        only_in_a=[image_id for image_id, there in zip(a.image_ids, in_b, strict=True) if not there],
        only_in_b=[image_id for image_id, there in zip(b.image_ids, in_a, strict=True) if not there],
        num_common=len(common),
        metadata=_metadata_differences(a, b),
    )
    tally = _Tally(a, b, diff)
    for image_id in common:
        tally.add(a.image(image_id), b.image(image_id))
        on_pictures(1)
    tally.finish()
    return diff


def match_regions(boxes_a: NDArray[np.float32], boxes_b: NDArray[np.float32]) -> list[tuple[int, int, float]]:
    """Pairs of regions with their IoU, each region in at most one, the largest overlap first; equal ones by order."""
    if boxes_a.shape == boxes_b.shape and np.array_equal(boxes_a, boxes_b):
        return [(place, place, 1.0) for place in range(len(boxes_a))]
    iou = _pairwise_iou(boxes_a.astype(np.float64), boxes_b.astype(np.float64))
    pairs: list[tuple[int, int, float]] = []
    taken_a, taken_b = set[int](), set[int]()
    for flat in np.argsort(-iou, axis=None, kind="stable"):
        i, j = divmod(int(flat), iou.shape[1])
        if iou[i, j] < IOU_THRESH:
            break
        if i not in taken_a and j not in taken_b:
            pairs.append((i, j, float(iou[i, j])))
            taken_a.add(i)
            taken_b.add(j)
    return pairs


def _pairwise_iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, m]"""
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    sides = np.clip(np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner, 0, None)
    overlap: NDArray[np.float64] = sides.prod(axis=2)
    areas = [(x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b)]
    iou: NDArray[np.float64] = overlap / (areas[0][:, None] + areas[1][None] - overlap)
    return iou


def _metadata_differences(a: RegionStore, b: RegionStore) -> dict[str, list[object]]:
    """By field, of fields with keys by field and key: "detector.name"."""
    mine, theirs = _flat(a.metadata.identity()), _flat(b.metadata.identity())
    names = dict.fromkeys([*mine, *theirs])
    return {name: [mine.get(name), theirs.get(name)] for name in names if mine.get(name) != theirs.get(name)}


def _flat(content: Mapping[str, Any]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in content.items():
        flat |= (
            {f"{name}.{key}": one for key, one in value.items()}
            if isinstance(value, Mapping)
            else {name: value}
        )
    return flat


class _Tally:
    """Adds up what single pictures say."""

    def __init__(self, a: RegionStore, b: RegionStore, diff: StoreDiff) -> None:
        self._diff = diff
        self._names = {
            kind: (getattr(a.metadata, f"{kind}_names"), getattr(b.metadata, f"{kind}_names"))
            for kind in ("object", "attribute")
        }
        self._same_dim = a.metadata.feature_dim == b.metadata.feature_dim
        self._means: list[NDArray[np.float32]] = []
        self._values: list[NDArray[np.float32]] = []
        self._changes: dict[str, Counter[tuple[str, str]]] = {kind: Counter() for kind in self._names}

    def add(self, a: ImageRecord, b: ImageRecord) -> None:
        diff = self._diff
        pairs = match_regions(a.boxes, b.boxes)
        left, right = [i for i, _, _ in pairs], [j for _, j, _ in pairs]
        diff.num_matched += len(pairs)
        diff.num_unmatched_a += len(a.boxes) - len(pairs)
        diff.num_unmatched_b += len(b.boxes) - len(pairs)
        sizes_differ = (a.width, a.height) != (b.width, b.height)
        diff.num_sizes_changed += sizes_differ
        changed = sizes_differ or left != right or len(pairs) != max(len(a.boxes), len(b.boxes))
        if pairs:
            ious = [iou for *_, iou in pairs]
            diff.least_iou = min(ious) if diff.least_iou is None else min(diff.least_iou, *ious)
            shift = float(np.abs(a.boxes[left] - b.boxes[right]).max())
            diff.largest_box_difference = max(diff.largest_box_difference, shift)
            changed |= shift > 0
            changed |= self._add_features(a, b, left, right)
        for kind in self._names:
            changed |= self._add_labels(kind, a, b, left, right)
        if changed:
            diff.num_changed += 1
            if len(diff.first_changed) < 5:
                diff.first_changed.append(a.image_id)

    def _add_features(
        self, a: ImageRecord, b: ImageRecord, left: Sequence[int], right: Sequence[int]
    ) -> bool:
        if not self._same_dim:
            return True
        mine, theirs = a.features[left].astype(np.float32), b.features[right].astype(np.float32)
        difference = np.abs(mine - theirs)
        largest = float(difference.max())
        before = self._diff.largest_feature_difference
        self._diff.largest_feature_difference = largest if before is None else max(before, largest)
        self._means.append(difference.mean(axis=1))
        self._values.append(np.abs(mine).mean(axis=1))
        return largest > 0

    def _add_labels(
        self, kind: str, a: ImageRecord, b: ImageRecord, left: Sequence[int], right: Sequence[int]
    ) -> bool:
        names_a, names_b = self._names[kind]
        if not names_a or not names_b:
            return bool(names_a) != bool(names_b)
        labels_a = [names_a[i] for i in getattr(a, f"{kind}_ids")[left]]
        labels_b = [names_b[i] for i in getattr(b, f"{kind}_ids")[right]]
        changes = [pair for pair in zip(labels_a, labels_b, strict=True) if pair[0] != pair[1]]
        self._changes[kind].update(changes)
        scores = (
            getattr(x, f"{kind}_scores")[side].astype(np.float32) for x, side in ((a, left), (b, right))
        )
        largest = float(np.abs(next(scores) - next(scores)).max(initial=0))
        before = self._diff.largest_score_difference.get(kind, 0.0)
        self._diff.largest_score_difference[kind] = max(before, largest)
        return bool(changes) or largest > 0

    def finish(self) -> None:
        if self._means:
            self._diff.typical_feature_difference = float(np.median(np.concatenate(self._means)))
            self._diff.typical_feature_value = float(np.median(np.concatenate(self._values)))
        for kind, changes in self._changes.items():
            if all(self._names[kind]):
                self._diff.labels_changed[kind] = changes.total()
                self._diff.commonest_label_changes[kind] = [(x, y, n) for (x, y), n in changes.most_common(5)]
