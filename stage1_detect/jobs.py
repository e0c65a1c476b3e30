"""Regions of many pictures into a store: block by block on dask, to be stopped and run again at any time.

The driver plans blocks, hands each to dask as one task, and commits it when it ends; what is committed is never done
again. In this process by default; processes are a dask cluster of this machine. Importing this module is cheap,
and a finished job is recognised without loading torch.
"""

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from stage1_detect.sources import ImageSource
from stage1_detect.spec import ExtractorSpec
from store_schema.errors import ConfigError, StoreMismatchError, UsageError
from store_schema.layout import ID_CHUNK_BYTES, Codec
from store_schema.ledger import cut_blocks, finished_blocks, read_plan
from store_schema.metadata import FeatureDtype, StoreMetadata, first_difference
from store_schema.records import Block, Problem
from store_schema.root import DOCUMENT, read_metadata
from store_schema.writer import StoreWriter

if TYPE_CHECKING:
    from stage1_detect.block_task import BlockResult, BlockTask

logger = logging.getLogger(__name__)

Scheduler = Literal["sync", "threads", "processes"]


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """How a job runs and how its store lies on disk; what it extracts is `ExtractorSpec`'s."""

    scheduler: Scheduler = "threads"
    """"sync": one block after the other, each operation on all cores. "threads", "processes": `num_workers` blocks at
    once, the cores shared out among them, which suits small networks better."""
    num_workers: int = 0
    """0: one a core, at most 4; more threads of one process wait for each other."""
    batch_size: int = 16
    """Pictures that the network sees at once, if they come to it at one size."""
    block_size: int = 256
    """Pictures in a block of a new store."""
    feature_dtype: FeatureDtype = "float16"
    codec: Codec = "none"

    def __post_init__(self) -> None:
        if self.scheduler not in ("sync", "threads", "processes"):
            raise ConfigError(f"scheduler must be 'sync', 'threads' or 'processes', not {self.scheduler!r}")
        for name, least in (("num_workers", 0), ("batch_size", 1), ("block_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.scheduler == "sync" and self.num_workers > 1:
            raise ConfigError(
                f"num_workers = {self.num_workers} has no effect with scheduler 'sync'; use 'threads'"
            )

    @property
    def workers(self) -> int:
        """Blocks at work at once."""
        if self.scheduler == "sync":
            return 1
        return self.num_workers or min(_cores(), 4)


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """What a job would do."""

    pictures: int
    done_before: int
    blocks: int
    """Still to be written."""
    num_bytes: int
    """Bytes that these blocks take in the store at most."""


@dataclass(frozen=True, kw_only=True)
class JobSummary:
    """What a job did."""

    pictures: int
    """Given to the job; done_before and processed are parts of it, the rest remains where it was stopped."""
    done_before: int
    processed: int
    """In this run, problems included."""
    regions: int
    short: int
    """Pictures with fewer regions than `min_regions`: the detector proposed no more."""
    problems: tuple[Problem, ...]
    """The pictures that could not be read in this run."""
    blocks: int
    seconds: float
    stopped_by: Literal["SIGINT", "SIGTERM"] | None = None
    """The signal that ended the job early, after a whole block; the same command goes on from there."""

    @property
    def images_per_second(self) -> float:
        """Of this run, loading the model included."""
        return self.processed / self.seconds if self.seconds else 0.0


def plan_job(
    sources: Sequence[ImageSource], store_path: str | Path, spec: ExtractorSpec, config: JobConfig
) -> JobPlan:
    """Say what `detect_to_store` would do, without writing anything or loading a model.

    Errors: those of `ExtractorSpec.store_metadata`; `StoreMismatchError` where the store is another's.
    """
    store_path = Path(store_path)
    metadata = _metadata(spec, config)
    ids = dict.fromkeys(source.image_id for source in sources)
    planned: list[Block] = []
    finished: set[int] = set()
    if (store_path / DOCUMENT).is_file():
        stored = read_metadata(store_path)
        difference = first_difference(metadata, stored)
        if difference is not None:
            raise StoreMismatchError(
                f"{store_path} was written otherwise: {difference}; write to a new store"
            )
        planned, finished = read_plan(store_path, stored.block_size), set(finished_blocks(store_path))
    known = {image_id for block in planned for image_id in block.image_ids}
    new = [image_id for image_id in ids if image_id not in known]
    to_do = [
        block
        for block in planned
        if block.index not in finished and not ids.keys().isdisjoint(block.image_ids)
    ]
    to_do += cut_blocks(new, len(planned), metadata.block_size)
    remaining = {image_id for block in to_do for image_id in block.image_ids}
    return JobPlan(
        pictures=len(ids),
        done_before=len(ids.keys() - remaining),
        blocks=len(to_do),
        num_bytes=len(remaining) * _bytes_per_image(metadata),
    )


def detect_to_store(
    sources: Sequence[ImageSource],
    store_path: str | Path,
    spec: ExtractorSpec,
    config: JobConfig | None = None,
    *,
    progress: bool | None = None,
) -> JobSummary:
    """Extract the regions of all pictures that the store does not have yet.

    Run again after a stop or a kill, it goes on with the first block that is not whole, and the store ends up the
    same, bit for bit. SIGINT or SIGTERM once: the blocks at hand are finished, then it returns; SIGINT twice: now.

    Args:
        sources: pictures with distinct ids.
        progress: show a bar; None shows it on a terminal. Without it a line is logged now and then.

    Errors: those of `ExtractorSpec.store_metadata`, `StoreWriter.open` and `build_extractor`; `UsageError` for no
    pictures. A picture that cannot be read is no error: the store has it as a problem, the summary counts it.
    """
    started = time.perf_counter()
    config = config or JobConfig()
    if not sources:
        raise UsageError("no pictures were given to the job; see find_images")
    path_of = {source.image_id: source.path for source in sources}
    with StoreWriter.open(store_path, _metadata(spec, config)) as writer:
        blocks = writer.plan([source.image_id for source in sources])
        to_do = [image_id for block in blocks for image_id in block.image_ids]
        tally = _Tally(len(sources), len(path_of.keys() - set(to_do)), len(blocks))
        if blocks:
            tasks = _tasks(blocks, path_of, writer, spec, config)
            with _stop_on_signals() as stop, _progress_bar(len(to_do), progress) as bar:
                for task, result in _run(tasks, config, stop, bar):
                    writer.commit(task.block, result.receipt)
                    tally.add(task.block, result, bar)
            if tally.blocks < len(blocks):
                tally.stopped_by = stop.signal_name
    return tally.summary(time.perf_counter() - started)


def _cores() -> int:
    """Cores that this job may use; OMP_NUM_THREADS says less where several jobs share the machine."""
    cores = len(os.sched_getaffinity(0))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdigit() and int(asked) > 0 else cores


def _metadata(spec: ExtractorSpec, config: JobConfig) -> StoreMetadata:
    return spec.store_metadata(
        feature_dtype=config.feature_dtype, block_size=config.block_size, codec=config.codec
    )


def _bytes_per_image(metadata: StoreMetadata) -> int:
    """Of a picture with all its region slots filled, in a store without compression."""
    arrays = metadata.arrays().values()
    return sum(
        math.prod(spec.row_shape)
        * (np.dtype(spec.dtype).itemsize if spec.dtype != "string" else ID_CHUNK_BYTES)
        for spec in arrays
    )


def _tasks(
    blocks: Sequence[Block],
    path_of: Mapping[str, Path],
    writer: StoreWriter,
    spec: ExtractorSpec,
    config: JobConfig,
) -> list["BlockTask"]:
    from stage1_detect.block_task import BlockTask  # loads torch: only now that there is work

    return [
        BlockTask(
            store=writer.path.absolute(),
            metadata=writer.metadata,
            block=block,
            paths=tuple(path_of.get(image_id) for image_id in block.image_ids),
            spec=spec,
            batch_size=config.batch_size,
            torch_threads=0 if config.scheduler == "sync" else max(1, _cores() // config.workers),
        )
        for block in blocks
    ]


class _Stop:
    """Whether a signal has asked to end the job, and which."""

    signal_name: Literal["SIGINT", "SIGTERM"] | None = None


@contextmanager
def _stop_on_signals() -> Iterator[_Stop]:
    """Let SIGINT and SIGTERM ask for a stop; a second SIGINT interrupts as usual. In the main thread only."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.signal_name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal_name = "SIGINT" if number == signal.SIGINT else "SIGTERM"
        logger.warning(
            "%s: finishing the blocks at hand, then stopping; Ctrl-C again stops now", stop.signal_name
        )

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress_bar(total: int, shown: bool | None) -> Iterator["tqdm[NoReturn]"]:
    shown = sys.stderr.isatty() if shown is None else shown
    with ExitStack() as stack:
        if shown:
            stack.enter_context(logging_redirect_tqdm())
        yield stack.enter_context(tqdm(total=total, unit="images", disable=not shown, smoothing=0.1))


_Results = Iterator[tuple["BlockTask", "BlockResult"]]


def _run(tasks: Sequence["BlockTask"], config: JobConfig, stop: _Stop, bar: "tqdm[NoReturn]") -> _Results:
    """Each task with its result as it ends, until all are done or a stop is asked for."""
    if config.scheduler == "sync":
        yield from _run_in_order(tasks, stop, bar)
    elif config.scheduler == "threads":
        yield from _run_on_threads(tasks, config.workers, stop, bar)
    else:
        from stage1_detect.cluster import run_on_cluster

        for task, result in run_on_cluster(
            tasks, config.workers, stopping=lambda: stop.signal_name is not None
        ):
            bar.update(len(task.block.image_ids))
            yield task, result


def _run_in_order(tasks: Sequence["BlockTask"], stop: _Stop, bar: "tqdm[NoReturn]") -> _Results:
    for task in tasks:
        yield task, _compute(task, bar.update)
        if stop.signal_name is not None:
            return


def _run_on_threads(
    tasks: Sequence["BlockTask"], num_threads: int, stop: _Stop, bar: "tqdm[NoReturn]"
) -> _Results:
    """As many tasks at a time as there are threads, so that a stop waits for no others."""
    import torch

    torch_threads = torch.get_num_threads()
    left = threading.Event()

    def on_images(number: int) -> None:
        if left.is_set():
            raise _LeftError
        bar.update(number)

    with ThreadPoolExecutor(num_threads, thread_name_prefix="block") as pool:
        try:
            waiting = iter(tasks)
            running = {pool.submit(_compute, task, on_images): task for task in islice(waiting, num_threads)}
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    yield task, future.result()
                    for following in islice(waiting, 0 if stop.signal_name else 1):
                        running[pool.submit(_compute, following, on_images)] = following
        finally:
            left.set()  # an interrupt or an error: do not wait for whole blocks that nobody will commit
            torch.set_num_threads(torch_threads)


class _LeftError(Exception):
    """The driver has gone; ends a block between two batches."""


def _compute(task: "BlockTask", on_images: Callable[[int], object]) -> "BlockResult":
    """One block as one dask task in this thread."""
    from dask.delayed import delayed

    from stage1_detect.block_task import run_block

    result: BlockResult = delayed(partial(run_block, task, on_images), pure=False)().compute(
        scheduler="synchronous"
    )
    return result


class _Tally:
    """Counts what is done and says so now and then."""

    def __init__(self, pictures: int, done_before: int, all_blocks: int) -> None:
        self.pictures = pictures
        self.done_before = done_before
        self.all_blocks = all_blocks
        self.blocks = self.processed = self.regions = self.short = 0
        self.problems: list[Problem] = []
        self.stopped_by: Literal["SIGINT", "SIGTERM"] | None = None
        self._last_time = self._last_line = time.perf_counter()

    def add(self, block: Block, result: "BlockResult", bar: "tqdm[NoReturn]") -> None:
        """Count a committed block; log it if the last line is some seconds old and no bar is shown."""
        receipt, now = result.receipt, time.perf_counter()
        for problem in receipt.problems[: max(0, _NAMED_PROBLEMS - len(self.problems))]:
            logger.warning("picture %r left out: %s (%s)", problem.image_id, problem.reason, problem.path)
        self.blocks += 1
        self.processed += len(block.image_ids)
        self.regions += receipt.num_regions
        self.short += result.num_short
        self.problems += receipt.problems
        bar.set_postfix(regions=self.regions, problems=len(self.problems), refresh=False)
        if bar.disable and (
            now - self._last_line > _SECONDS_BETWEEN_LINES or self.blocks in (1, self.all_blocks)
        ):
            logger.info(
                "block %d/%d: %d images, %d regions, %.1f images/s",
                self.blocks,
                self.all_blocks,
                len(block.image_ids),
                receipt.num_regions,
                len(block.image_ids) / max(now - self._last_time, 1e-9),
            )
            self._last_line = now
        self._last_time = now

    def summary(self, seconds: float) -> JobSummary:
        return JobSummary(
            pictures=self.pictures,
            done_before=self.done_before,
            processed=self.processed,
            regions=self.regions,
            short=self.short,
            problems=tuple(self.problems),
            blocks=self.blocks,
            seconds=seconds,
            stopped_by=self.stopped_by,
        )


_NAMED_PROBLEMS = 20
"""So many unreadable pictures are named in the log; all are in the store and in the summary."""

_SECONDS_BETWEEN_LINES = 5.0
