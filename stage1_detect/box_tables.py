"""Boxes of objects that somebody else found: read from a table, given out by picture.

A Parquet file with image_id, x1, y1, x2, y2 (pixels of the upright picture) and object; score and crowd are
optional. The `objects` table of a data set is one. No torch in here.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from store_schema.errors import InputNotFoundError, TableError

WHOLE_PICTURE = "(picture)"
"""The object name of the box around the whole picture."""

# fmt: off
COCO_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
"""The 80 object classes of COCO in the order of its detectors."""


@dataclass(frozen=True, eq=False)
class GivenBoxes:
    """The boxes of one picture."""

    boxes: NDArray[np.float32]
    """[n, 4] xyxy in pixels of the picture."""
    object_ids: NDArray[np.int64]
    """[n], into the names of `box_names`."""
    scores: NDArray[np.float32]
    """[n]."""


def boxes_file(path: str | Path) -> Path:
    """The file itself: of a folder, its objects table. Errors: `InputNotFoundError`."""
    file = Path(path) / "objects.parquet" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputNotFoundError(
            f"{file}: no such file; expected a Parquet table of boxes, or FastestDet as .onnx"
        )
    return file


def is_table(path: str | Path) -> bool:
    """Whether boxes at this path are read rather than found: everything but an ONNX network."""
    return Path(path).suffix != ".onnx"


def box_names(path: str | Path, *, whole_picture: bool) -> tuple[str, ...]:
    """Names of the objects that the boxes can have: a table's own, sorted, or COCO's; the whole picture last."""
    file = boxes_file(path)
    names = tuple(sorted(_read(file)["object"].unique())) if is_table(file) else COCO_NAMES
    return (*names, WHOLE_PICTURE) if whole_picture else names


class BoxTable:
    """The boxes of every picture of a table, in memory."""

    def __init__(self, path: str | Path) -> None:
        """Read and check. Errors: `InputNotFoundError`, `TableError` naming file, row and rule."""
        frame = _read(boxes_file(path))
        ids = {name: index for index, name in enumerate(sorted(frame["object"].unique()))}
        if "crowd" in frame.columns:
            frame = frame[~frame["crowd"].astype(bool)]
        self._boxes = frame[list(_EDGES)].to_numpy(np.float32)
        self._object_ids = frame["object"].map(ids).to_numpy(np.int64)
        scored = "score" in frame.columns
        self._scores = frame["score"].to_numpy(np.float32) if scored else np.ones(len(frame), np.float32)
        self._rows = {str(image_id): rows for image_id, rows in frame.groupby("image_id").indices.items()}

    def boxes_of(self, image_id: str) -> GivenBoxes:
        """The picture's boxes in the table's order; none where the table does not know it."""
        rows = self._rows.get(image_id, np.empty(0, np.int64))
        return GivenBoxes(self._boxes[rows], self._object_ids[rows], self._scores[rows])


_EDGES = ("x1", "y1", "x2", "y2")


def _read(file: Path) -> pd.DataFrame:
    try:
        frame: pd.DataFrame = pq.read_table(file).to_pandas()
    except (pa.ArrowInvalid, OSError) as error:
        raise TableError(f"{file}: not a readable Parquet file ({error}); write it again") from error
    for column in ("image_id", *_EDGES, "object"):
        if column not in frame.columns:
            raise TableError(f"{file}: column {column!r} is missing; it has {list(frame.columns)}")
    edges = frame[list(_EDGES)].to_numpy(np.float64)
    scores = frame["score"].to_numpy(np.float64) if "score" in frame.columns else np.zeros(len(frame))
    good = np.isfinite(edges).all(1) & (edges[:, :2] >= 0).all(1) & (edges[:, :2] < edges[:, 2:]).all(1)
    for rule, holds in (("0 <= x1 < x2 and 0 <= y1 < y2", good), ("a finite score", np.isfinite(scores))):
        if not holds.all():
            row = int((~holds).argmax())
            raise TableError(f"{file}: row {row}: {rule} must hold; it is {frame.iloc[row].to_dict()}")
    return frame
