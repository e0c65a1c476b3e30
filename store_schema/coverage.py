"""Which pictures of a data set a store has regions of, and whether its detector was trained on them.

To be asked before a training starts and not in its third hour. Reads identifiers and numbers of regions, no features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from store_schema.artifacts import model_fingerprint, read_model_json
from store_schema.errors import CheckpointError
from store_schema.fingerprint import file_sha256, fingerprint
from store_schema.reader import RegionStore
from store_schema.tables import TableName, has_table, read_table, table_path

_ANNOTATIONS: tuple[TableName, ...] = ("images", "objects", "object_attributes")


@dataclass(frozen=True)
class Coverage:
    """Where some pictures stand in a store, each in one of four places, in the order given."""

    covered: tuple[str, ...]
    """With at least one region."""
    empty: tuple[str, ...]
    """In the store, with no region: legal, and worth a look."""
    quarantined: Mapping[str, str]
    """Seen by the job and unreadable, with the reason."""
    absent: tuple[str, ...]
    """Unknown to the store."""

    @property
    def num_images(self) -> int:
        """All that were asked for."""
        return len(self.covered) + len(self.empty) + self.num_missing

    @property
    def num_missing(self) -> int:
        """Those without a row that could be read."""
        return len(self.quarantined) + len(self.absent)

    @property
    def missing(self) -> tuple[str, ...]:
        """Their identifiers, quarantined ones first."""
        return (*self.quarantined, *self.absent)

    def why_missing(self) -> str:
        """In words for a message: how many of each kind, and the first of each."""
        parts = []
        if self.absent:
            parts.append(f"{len(self.absent)} not extracted (such as {', '.join(self.absent[:3])})")
        if self.quarantined:
            image_id, reason = next(iter(self.quarantined.items()))
            parts.append(f"{len(self.quarantined)} quarantined (such as {image_id}: {reason})")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """What is known of a detector's training pictures."""

    how: str
    """By what it is known, or why it is not."""
    image_ids: frozenset[str] | None
    """Those of the tables asked about; None: unknown."""


def coverage(store: RegionStore, image_ids: Sequence[str]) -> Coverage:
    """Look pictures up in a store; repeated identifiers count once."""
    distinct = list(dict.fromkeys(image_ids))
    places = store.image_ids.places(distinct)
    found = places >= 0
    nums = store.num_regions(store.all_rows[places[found]])
    num_of = dict(
        zip((i for i, there in zip(distinct, found, strict=True) if there), nums.tolist(), strict=True)
    )
    reasons = {problem.image_id: problem.reason for problem in store.problems()} if not found.all() else {}
    missing = [image_id for image_id in distinct if image_id not in num_of]
    return Coverage(
        covered=tuple(image_id for image_id, num in num_of.items() if num),
        empty=tuple(image_id for image_id, num in num_of.items() if not num),
        quarantined={image_id: reasons[image_id] for image_id in missing if image_id in reasons},
        absent=tuple(image_id for image_id in missing if image_id not in reasons),
    )


def coverage_by_split(store: RegionStore, tables: Path) -> dict[str, Coverage]:
    """`coverage` of each split of a data set. Errors: those of `read_table`."""
    images = read_table(tables, "images")
    return {
        str(split): coverage(store, part["image_id"].tolist())
        for split, part in images.groupby("split", sort=False)
    }


def trained_on(store: RegionStore, tables: Path, detector: Path | None = None) -> TrainedOn:
    """Which pictures of the tables the store's detector was trained on.

    Known where the detector's model.json is at hand: it names the tables' fingerprint and the COCO ids that it was
    trained on.

    Args:
        detector: folder of the detector's model, where it does not lie where the store says.
    """
    described = store.metadata.detector
    folder = detector if detector is not None else described.get("path")
    if folder is None:
        return TrainedOn(
            how=f"the store does not say where its detector {described['name']!r} lies", image_ids=None
        )
    try:
        facts = read_model_json(folder).get("trained_on")
        if model_fingerprint(folder) != described["fingerprint"]:
            return TrainedOn(how=f"the model at {folder} is not the store's detector", image_ids=None)
    except CheckpointError:
        return TrainedOn(
            how=f"the detector is no longer at {folder}; name it with --detector", image_ids=None
        )
    if not isinstance(facts, dict):
        return TrainedOn(how=f"the model at {folder} does not say what it was trained on", image_ids=None)
    return _pictures_trained_on(facts, tables)


def detection_tables_fingerprint(tables: Path) -> str:
    """Identity of what a detector is trained on: the bytes of the tables that it reads."""
    return fingerprint({n: file_sha256(table_path(tables, n)) for n in _ANNOTATIONS if has_table(tables, n)})


def _pictures_trained_on(facts: Mapping[str, Any], tables: Path) -> TrainedOn:
    images = read_table(tables, "images")
    if facts.get("tables") == detection_tables_fingerprint(tables):
        split = images[images["split"] == facts.get("split", "train")]
        return TrainedOn(how="trained on these tables", image_ids=frozenset(split["image_id"]))
    coco_ids = set(facts.get("coco_ids") or ())
    if coco_ids and "coco_id" in images.columns and images["coco_id"].notna().any():
        known: pd.DataFrame = images[images["coco_id"].notna()]
        there = known[known["coco_id"].astype("int64").isin(coco_ids)]
        return TrainedOn(how="compared by COCO ids", image_ids=frozenset(there["image_id"]))
    return TrainedOn(
        how="trained on other tables, and without COCO ids on both sides none can be compared", image_ids=None
    )
