"""The objects and object_attributes tables, gathered column by column: millions of rows fit into memory."""

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from store_schema.tables import write_table

MAX_ATTRIBUTES = 16
"""Of an object; as in the release of Anderson et al. 2018 (lib/datasets/vg.py)."""


class ObjectRows:
    """Rows of both tables, and counts of what was changed or left out on the way."""

    def __init__(self) -> None:
        """Begin without rows."""
        self.counts: Counter[str] = Counter()
        self._image_ids: list[str] = []
        self._object_ids: list[str] = []
        self._names: list[str] = []
        self._boxes = array("d")
        self._crowd: list[bool] = []
        self._owners: list[str] = []
        self._attributes: list[str] = []

    @property
    def image_ids(self) -> set[str]:
        """The pictures that have an object."""
        return set(self._image_ids)

    def add(
        self,
        image_id: str,
        object_id: str,
        name: str,
        box: Sequence[float],
        size: tuple[int, int],
        *,
        crowd: bool = False,
        attributes: Iterable[str] = (),
    ) -> bool:
        """Add an object, its box cut to the picture; False where nothing of it lies inside.

        Args:
            box: x, y, width, height in pixels, as COCO and Visual Genome write them.
            size: width and height of the picture.
            attributes: the first 16 different ones are kept.
        """
        x, y, width, height = box
        cut = (max(0.0, x), max(0.0, y), min(x + width, size[0]), min(y + height, size[1]))
        if not (cut[2] > cut[0] and cut[3] > cut[1]):  # NaN too
            self.counts["boxes without area inside the picture, left out"] += 1
            return False
        if cut != (x, y, x + width, y + height):
            self.counts["boxes cut to the picture"] += 1
        self._image_ids.append(image_id)
        self._object_ids.append(object_id)
        self._names.append(name)
        self._boxes.extend(cut)
        self._crowd.append(crowd)
        self.counts["crowds"] += crowd
        owned = list(dict.fromkeys(attributes))
        if len(owned) > MAX_ATTRIBUTES:
            self.counts[f"attributes beyond {MAX_ATTRIBUTES} of an object, left out"] += (
                len(owned) - MAX_ATTRIBUTES
            )
        for attribute in owned[:MAX_ATTRIBUTES]:
            self._owners.append(object_id)
            self._attributes.append(attribute)
        return True

    def write(self, out: Path, *, attributes: bool) -> dict[str, int]:
        """Write the tables, the second where the data set has attributes; returns rows and counts.

        Errors: `TableError`, for one where an object comes twice.
        """
        corners = {name: self._boxes[place::4] for place, name in enumerate(("x1", "y1", "x2", "y2"))}
        objects = pd.DataFrame(
            {
                "image_id": self._image_ids,
                "object_id": self._object_ids,
                **corners,
                "object": self._names,
                "crowd": self._crowd,
            }
        )
        write_table(out, "objects", objects)
        rows = {"objects": len(objects)}
        if attributes:
            write_table(
                out,
                "object_attributes",
                pd.DataFrame({"object_id": self._owners, "attribute": self._attributes}),
            )
            rows["object_attributes"] = len(self._owners)
        return rows | {name: count for name, count in self.counts.items() if count}
