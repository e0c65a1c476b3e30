"""Regions of many pictures into a store: block by block on dask, to be stopped and run again at any time.

The driver plans blocks, hands each to dask as one task, and commits it when it ends; what is committed is never done
again. Tasks run in this process (`in_process.py`) or on a dask cluster (`cluster.py`). Importing this module is
cheap, and a finished job is recognised without loading torch.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import psutil

from stage1_detect.job_progress import StopSignal, Tally, progress_bar, stop_on_signals
from stage1_detect.sources import ImageSource
from stage1_detect.spec import ExtractorSpec
from stage1_detect.stamps import find_changed, read_stamps, write_stamps
from store_schema.durable import remove_partials
from store_schema.errors import ConfigError, StoreMismatchError, UsageError
from store_schema.layout import ID_CHUNK_BYTES, Codec
from store_schema.ledger import cut_blocks, finished_blocks, read_plan, read_record
from store_schema.metadata import FeatureDtype, StoreMetadata, first_difference
from store_schema.records import Block, Problem
from store_schema.root import DOCUMENT, read_metadata
from store_schema.writer import StoreWriter

if TYPE_CHECKING:
    from tqdm import tqdm

    from stage1_detect.block_task import BlockResult, BlockTask

logger = logging.getLogger(__name__)

SCHEDULERS = ("auto", "sync", "threads", "processes", "slurm", "pbs", "cuda")
_BLOCKS_FOR_PROCESSES = 16
"""With at least so many blocks a worker, "auto" takes processes: to start them took 25 s here, 16 blocks 30 s."""
_WORKER_BYTES = 4 * 2**30
"""Memory that a process is given room for, where the number of processes is left open."""


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """How a job runs and how its store lies on disk; what it extracts is `ExtractorSpec`'s."""

    scheduler: str = "auto"
    """In this process, for debugging and short jobs: "sync" (one block after the other) and "threads". On a dask
    cluster: "processes" of this machine, jobs of the queues "slurm" and "pbs", "cuda" (one worker a GPU), or the
    address of a running scheduler ("tcp://..."). "auto": "processes" where there are several cores and blocks enough
    for them, else "threads"."""
    num_workers: int = 0
    """Blocks at work at once on this machine, or jobs of the queue. 0: one a core as far as memory allows (threads: at
    most 4, since more wait for each other); the queue: 1."""
    torch_threads: int = 0
    """Threads of an operation. 0: cores / workers on this machine, torch's own for "sync", 1 on other machines. The
    last bits of a feature depend on it."""
    worker_memory: str = "auto"
    """Of each of "processes": one that takes more is ended and its block tried again. "auto": an equal share."""
    batch_size: int = 16
    """Pictures that the network sees at once, if they come to it at one size."""
    block_size: int = 256
    """Pictures in a block of a new store."""
    feature_dtype: FeatureDtype = "float16"
    codec: Codec = "none"
    retry_problems: bool = False
    """Try all quarantined pictures again; those whose file has changed are tried again in any case."""

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS and "://" not in self.scheduler:
            raise ConfigError(
                f"scheduler must be one of {', '.join(SCHEDULERS)} or an address as tcp://host:8786, "
                f"not {self.scheduler!r}"
            )
        for name, least in (("num_workers", 0), ("torch_threads", 0), ("batch_size", 1), ("block_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.num_workers > 1 and (self.scheduler in ("sync", "cuda") or "://" in self.scheduler):
            raise ConfigError(
                f"num_workers = {self.num_workers} has no effect with scheduler {self.scheduler!r}; leave it out"
            )

    @property
    def workers(self) -> int:
        """Blocks at work at once, as far as this process decides it."""
        if self.scheduler == "sync":
            return 1
        if self.num_workers or self.scheduler in ("slurm", "pbs"):
            return max(1, self.num_workers)
        if self.scheduler == "threads":
            return min(_cores(), 4)
        return max(1, min(_cores(), psutil.virtual_memory().total // _WORKER_BYTES))

    def for_blocks(self, blocks: int) -> "JobConfig":
        """Decide "auto" by the number of blocks that all pictures make: the same for a job that goes on."""
        if self.scheduler != "auto":
            return self
        enough = self.workers > 1 and blocks >= _BLOCKS_FOR_PROCESSES * self.workers
        return replace(self, scheduler="processes" if enough else "threads")

    @property
    def threads_per_block(self) -> int:
        """Threads of an operation; 0 leaves torch's own number."""
        if self.torch_threads or self.scheduler == "sync":
            return self.torch_threads
        return max(1, _cores() // self.workers) if self.scheduler in ("threads", "processes") else 1


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """What a job would do."""

    pictures: int
    done_before: int
    blocks: int
    """Still to be written."""
    num_bytes: int
    """Bytes that these blocks take in the store at most."""
    to_do: tuple[ImageSource, ...]
    """The pictures of these blocks."""
    retried: int
    """Of them, those that were quarantined before."""
    changed: Mapping[str, str]
    """Pictures that are in the store and whose file has changed since, with what differs."""


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
    retried: int = 0
    """Of the processed, those that were quarantined before."""
    changed: Mapping[str, str] = field(default_factory=dict)
    """Pictures that are in the store and whose file has changed since, with what differs; the store keeps the old."""
    stopped_by: StopSignal | None = None
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
    source_of = {source.image_id: source for source in sources}
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
    seen = _look_at_done(source_of, store_path, planned, finished, retry_problems=config.retry_problems)
    known = {image_id for block in planned for image_id in block.image_ids}
    new = [image_id for image_id in source_of if image_id not in known or image_id in seen.again]
    to_do = [
        block
        for block in planned
        if block.index not in finished and not source_of.keys().isdisjoint(block.image_ids)
    ]
    to_do += cut_blocks(new, len(planned), metadata.block_size)
    remaining = {image_id for block in to_do for image_id in block.image_ids}
    return JobPlan(
        pictures=len(source_of),
        done_before=len(source_of.keys() - remaining),
        blocks=len(to_do),
        num_bytes=len(remaining) * _bytes_per_image(metadata),
        to_do=tuple(source_of[image_id] for image_id in source_of if image_id in remaining),
        retried=len(seen.again),
        changed=seen.changed,
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
    Quarantined pictures whose file has changed are tried again; other pictures whose file has changed stay as they
    are, since what is committed is never replaced: the summary names them.

    Args:
        sources: pictures with distinct ids.
        progress: show a bar; None shows it on a terminal. Without it a line is logged now and then.

    Errors: those of `ExtractorSpec.store_metadata`, `StoreWriter.open`, `build_extractor` and `open_client`;
    `UsageError` for no pictures. A picture that cannot be read is no error: the store has it as a problem, the
    summary counts it.
    """
    started = time.perf_counter()
    if not sources:
        raise UsageError("no pictures were given to the job; see find_images")
    config = config or JobConfig()
    config = config.for_blocks(math.ceil(len(sources) / config.block_size))
    source_of = {source.image_id: source for source in sources}
    with StoreWriter.open(store_path, _metadata(spec, config)) as writer:
        planned = read_plan(writer.path, writer.metadata.block_size)
        finished = set(finished_blocks(writer.path))
        seen = _look_at_done(source_of, writer.path, planned, finished, retry_problems=config.retry_problems)
        blocks = writer.plan(list(source_of), again=seen.again)
        to_do = [image_id for block in blocks for image_id in block.image_ids]
        tally = Tally(len(sources), len(source_of.keys() - set(to_do)), len(blocks))
        if blocks:
            tasks = _tasks(blocks, source_of, writer, spec, config)
            with (
                stop_on_signals() as stop,
                progress_bar(len(to_do), progress) as bar,
                _running(tasks, config, stop.asked, bar) as results,
            ):
                for task, result in results:
                    write_stamps(writer.path, task.block.index, result.stamps)
                    writer.commit(task.block, result.receipt)
                    tally.add(task.block, result, bar)
            if tally.blocks < len(blocks):
                tally.stopped_by = stop.signal_name
            for name in writer.metadata.arrays():
                remove_partials(writer.path / name)  # left behind by workers that died
    return JobSummary(
        pictures=tally.pictures,
        done_before=tally.done_before,
        processed=tally.processed,
        regions=tally.regions,
        short=tally.short,
        problems=tuple(tally.problems),
        blocks=tally.blocks,
        seconds=time.perf_counter() - started,
        retried=len(seen.again),
        changed=seen.changed,
        stopped_by=tally.stopped_by,
    )


@dataclass(frozen=True)
class _SeenBefore:
    """What is to be said of pictures that earlier runs have done."""

    again: frozenset[str]
    """Quarantined ones that are tried again."""
    changed: dict[str, str]
    """Others whose file has changed, with what differs."""


def _look_at_done(
    source_of: Mapping[str, ImageSource],
    store: Path,
    planned: Sequence[Block],
    finished: set[int],
    *,
    retry_problems: bool,
) -> _SeenBefore:
    last_block = {image_id: block.index for block in planned for image_id in block.image_ids}
    done = {image_id for image_id, index in last_block.items() if index in finished and image_id in source_of}
    if not done:
        return _SeenBefore(frozenset(), {})
    problems = {
        problem.image_id
        for index in finished
        for problem in read_record(store, index).receipt.problems
        if last_block.get(problem.image_id) == index
    }
    changed = find_changed((source_of[image_id] for image_id in done), read_stamps(store))
    again = done & problems if retry_problems else problems & changed.keys()
    return _SeenBefore(
        frozenset(again), {image_id: changed[image_id] for image_id in changed if image_id not in problems}
    )


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
    source_of: Mapping[str, ImageSource],
    writer: StoreWriter,
    spec: ExtractorSpec,
    config: JobConfig,
) -> list["BlockTask"]:
    from stage1_detect.block_task import BlockTask  # loads torch: only now that there is work

    # Workers of other machines do not start in this folder.
    whole = {image_id: replace(source, path=source.path.absolute()) for image_id, source in source_of.items()}
    return [
        BlockTask(
            store=writer.path.absolute(),
            metadata=writer.metadata,
            block=block,
            sources=tuple(whole.get(image_id) for image_id in block.image_ids),
            spec=_absolute(spec),
            batch_size=config.batch_size,
            torch_threads=config.threads_per_block,
        )
        for block in blocks
    ]


def _absolute(spec: ExtractorSpec) -> ExtractorSpec:
    boxes = spec.boxes
    if boxes is not None:
        boxes = replace(boxes, path=str(Path(boxes.path).absolute()))
    weights = Path(spec.weights)
    return replace(spec, boxes=boxes, weights=str(weights.absolute()) if weights.exists() else spec.weights)


@contextmanager
def _running(
    tasks: Sequence["BlockTask"], config: JobConfig, stopping: Callable[[], bool], bar: "tqdm[NoReturn]"
) -> Iterator[Iterator[tuple["BlockTask", "BlockResult"]]]:
    """Each task with its result as it ends, until all are done or a stop is asked for."""
    if config.scheduler in ("sync", "threads"):
        from stage1_detect.in_process import run_in_order, run_on_threads

        if config.scheduler == "sync":
            results = run_in_order(tasks, stopping=stopping, on_images=bar.update)
        else:
            results = run_on_threads(tasks, config.workers, stopping=stopping, on_images=bar.update)
        with closing(results):
            yield results
        return
    from stage1_detect.cluster import open_client, run_on_cluster

    with open_client(config.scheduler, config.workers, config.worker_memory) as client:
        yield run_on_cluster(tasks, client, stopping=stopping, on_images=bar.update)
