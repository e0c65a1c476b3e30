"""Write a data set of generated scenes: pictures, the six tables, and what they were made with.

Everything is written into `OUT.partial`, which becomes `OUT` by one rename at the end: an interrupted run
leaves nothing that looks whole, and the next run begins anew (a scene takes a few milliseconds).
"""

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.scenes import specification as spec
from pipeline.scenes.picture import IMAGES_FOLDER, PictureOrder, SceneRows
from pipeline.scenes.workers import CHUNK_SIZE, choose_workers, draw_chunks
from store_schema.errors import UsageError
from store_schema.tables import TableName, has_table, table_path, write_table

logger = logging.getLogger(__name__)

DEFAULT_SPLITS: Mapping[str, float] = {"train": 0.8, "val": 0.1, "test": 0.1}
PARAMETERS_FILE = "scenes.json"
_TABLES: tuple[TableName, ...] = (
    "images", "objects", "object_attributes", "captions", "questions", "answers",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SceneSummary:
    """What a finished data set holds; `existed` is True where it was there already and nothing was drawn."""

    path: Path
    num_images: int
    seed: int
    size: int
    splits: dict[str, int]
    """Pictures of each split."""
    num_objects: int
    num_captions: int
    num_questions: int
    seconds: float
    existed: bool


def generate_scenes(
    out: str | Path,
    *,
    num_images: int,
    seed: int,
    size: int = spec.DEFAULT_IMAGE_SIZE,
    workers: int | None = None,
    splits: Mapping[str, float] = DEFAULT_SPLITS,
    progress: bool | None = None,
) -> SceneSummary:
    """Draw a data set of scenes into a new folder, complete or not at all.

    The same arguments give the same bytes of every file, whatever `workers` is. `docs/scenes.md` says what
    a scene may hold.

    Args:
        out: the data set's folder; made here. A finished one with the same parameters is left as it is.
        num_images: 1 or more; picture `i` of a seed is the same in every number of pictures.
        seed: 0 or more; it is part of every image_id ("s7-000012").
        size: side of the square pictures in pixels, 64 to 1024.
        workers: processes; None takes what the machine allows and the number of pictures deserves.
        splits: fraction of each split, in the order of the pictures; they add up to 1.
        progress: True or False; None shows a bar on stderr where that is a terminal.

    Errors: `UsageError` where an argument is out of range, `out` holds anything else, or another process is
    writing it.
    """
    out = Path(out)
    started = time.perf_counter()
    counts = _split_counts(num_images, splits)
    _check_arguments(num_images, seed, size, workers)
    parameters = _parameters(num_images, seed, size, counts)
    if _is_finished(out, parameters):
        logger.info("%s holds these %d scenes already; nothing to do", out, num_images)
        return _summary(out, parameters, existed=True, seconds=time.perf_counter() - started)
    with _partial_folder(out) as partial:
        starts = accumulate(counts.values(), initial=0)
        order = PictureOrder(
            folder=partial, seed=seed, size=size, splits=tuple(counts), starts=tuple(starts)[: len(counts)]
        )
        num_workers = choose_workers(num_images) if workers is None else workers
        rows = _draw_all(order, num_images, num_workers, progress)
        for name in _TABLES:
            write_table(partial, name, getattr(rows, name))
        parameters["counts"] = {name: len(getattr(rows, name)) for name in _TABLES}
        (partial / PARAMETERS_FILE).write_text(json.dumps(parameters, indent=2) + "\n")
    summary = _summary(out, parameters, existed=False, seconds=time.perf_counter() - started)
    logger.info(
        "%s: %d scenes, %d objects, %.0f images/s",
        out,
        num_images,
        summary.num_objects,
        num_images / summary.seconds,
    )
    return summary


def summary_as_json(summary: SceneSummary) -> dict[str, Any]:
    """The summary in plain JSON types, for `--json`."""
    return asdict(summary) | {"path": str(summary.path)}


def _check_arguments(num_images: int, seed: int, size: int, workers: int | None) -> None:
    if seed < 0:
        raise UsageError(f"seed must be 0 or more, it is {seed}")
    if not spec.MIN_IMAGE_SIZE <= size <= spec.MAX_IMAGE_SIZE:
        raise UsageError(
            f"size must be {spec.MIN_IMAGE_SIZE} to {spec.MAX_IMAGE_SIZE} pixels, it is {size}; "
            f"scenes are specified for {spec.DEFAULT_IMAGE_SIZE}"
        )
    if workers is not None and workers < 1:
        raise UsageError(f"workers must be 1 or more, it is {workers}; leave it out for this machine's best")


def _split_counts(num_images: int, splits: Mapping[str, float]) -> dict[str, int]:
    """Pictures of each split: the fractions' running sums, rounded."""
    if num_images < 1:
        raise UsageError(f"the number of images must be 1 or more, it is {num_images}")
    total = sum(splits.values())
    if not splits or min(splits.values()) < 0 or abs(total - 1) > 1e-6:
        raise UsageError(
            f"fractions of the splits must be 0 or more and add up to 1, they are {dict(splits)}"
        )
    ends = [round(num_images * share) for share in accumulate(splits.values())]
    return {name: end - start for name, end, start in zip(splits, ends, [0, *ends], strict=False)}


def _parameters(num_images: int, seed: int, size: int, splits: dict[str, int]) -> dict[str, Any]:
    return {
        "specification": spec.SPECIFICATION_VERSION,
        "num_images": num_images,
        "seed": seed,
        "size": size,
        "splits": splits,
        "objects": list(spec.OBJECT_NAMES),
        "attributes": list(spec.ATTRIBUTE_NAMES),
    }


def _is_finished(out: Path, parameters: dict[str, Any]) -> bool:
    """Whether `out` is this very data set; refuse anything else that is there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    path = out / PARAMETERS_FILE
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{out} exists and is not a folder of generated scenes (no readable {PARAMETERS_FILE}); "
            "choose another folder or remove it"
        ) from error
    different = [key for key, value in parameters.items() if found.get(key) != value]
    if different:
        raise UsageError(
            f"{out} holds scenes of other parameters: "
            + ", ".join(f"{key} is {found.get(key)} there and {parameters[key]} here" for key in different)
            + "; choose another folder or remove it"
        )
    missing = [table_path(out, name).name for name in _TABLES if not has_table(out, name)]
    if missing:
        raise UsageError(
            f"{out} was whole once, but {', '.join(missing)} is missing; remove the folder and run again"
        )
    return True


def _summary(out: Path, parameters: dict[str, Any], *, existed: bool, seconds: float) -> SceneSummary:
    counts = parameters.get("counts") or json.loads((out / PARAMETERS_FILE).read_text())["counts"]
    return SceneSummary(
        path=out,
        num_images=parameters["num_images"],
        seed=parameters["seed"],
        size=parameters["size"],
        splits=parameters["splits"],
        num_objects=counts["objects"],
        num_captions=counts["captions"],
        num_questions=counts["questions"],
        seconds=seconds,
        existed=existed,
    )


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` that becomes `out` when the block ends well and is removed when it fails.

    Locked while it is written, so that two runs cannot mix; a killed run's leftovers are cleared.
    """
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another process is writing {partial}; wait for it or choose another folder"
            ) from error
        for leftover in partial.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        try:
            (partial / IMAGES_FOLDER).mkdir()
            yield partial
            partial.rename(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def _draw_all(order: PictureOrder, num_images: int, workers: int, progress: bool | None) -> SceneRows:
    chunks = [range(start, min(start + CHUNK_SIZE, num_images)) for start in range(0, num_images, CHUNK_SIZE)]
    rows = SceneRows()
    disable = None if progress is None else not progress
    with tqdm(total=num_images, unit="image", desc="scenes", disable=disable) as bar:
        for chunk, part in zip(chunks, draw_chunks(order, chunks, workers), strict=True):
            rows.extend(part)
            bar.update(len(chunk))
    return rows
