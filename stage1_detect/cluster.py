"""Block tasks on dask clusters: processes of this machine, a running cluster, a queue's jobs, one worker a GPU.

A worker that dies costs its blocks another try. A block whose workers die again and again, or that needs more memory
than a worker has, is done picture by picture (`careful.py`). A scheduler that is gone ends the job with a message:
finished blocks are kept. Where a cluster is not of this machine, its workers must see pictures, weights and store
under the same paths, and have this package installed.
"""

import importlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import dask
from distributed import Client, Future, LocalCluster, get_worker, wait
from distributed.scheduler import KilledWorker
from distributed.utils import get_mp_context

from stage1_detect.block_task import BlockResult, BlockTask, run_block
from stage1_detect.careful import run_carefully
from stage1_detect.worker_plugin import LeaveInterruptsToTheDriver
from store_schema.errors import ButdError, InputNotFoundError, UsageError

logger = logging.getLogger(__name__)

_LOCAL_SETTINGS = {
    # Three tries, then picture by picture; dask's own number is one more.
    "distributed.scheduler.allowed-failures": 2,
    # A worker that does not answer (a machine that hangs) loses its block after this time; dask: 5 minutes.
    "distributed.scheduler.worker-ttl": "60s",
    # dask gives a worker up for good that is not back after 15 seconds, which a busy machine may need.
    "distributed.deploy.lost-worker-timeout": "1 hour",
    # Workers are forked from one process that has loaded torch, see `_load_torch_once`.
    "distributed.worker.multiprocessing-method": "forkserver",
}
_LOADED_ONCE = ("stage1_detect.block_task", "distributed")
_CAREFUL_ROUNDS = 5
_CONNECT_SECONDS = 10
_SECONDS_BETWEEN_REMINDERS = 30.0


@contextmanager
def open_client(scheduler: str, num_workers: int, worker_memory: str = "auto") -> Iterator[Client]:
    """A client of the cluster that `scheduler` names; a cluster that was started here ends with it.

    Args:
        scheduler: "processes", "slurm", "pbs", "cuda", or the address of a running scheduler.
        num_workers: processes, or jobs of the queue; without effect on "cuda" and running clusters.
        worker_memory: of each of "processes", as dask takes it: "4GiB", or "auto" for an equal share.

    Errors: `InputNotFoundError` where no scheduler answers at the address; `UsageError` where a package or the
    queue's settings are missing.
    """
    # It reports every connection and every death otherwise; what matters of it comes as an exception.
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with ExitStack() as stack, dask.config.set(_LOCAL_SETTINGS if "://" not in scheduler else {}):
        if "://" in scheduler:
            client = _connect(scheduler)
        else:
            cluster = stack.enter_context(_start_cluster(scheduler, num_workers, worker_memory))
            client = Client(cluster)  # type: ignore[no-untyped-call]  # distributed is typed in part, here and below
        stack.callback(client.close, timeout=5)
        yield client


def queue_cluster(scheduler: str) -> Any:  # noqa: ANN401  (of a package that is not always there)
    """A dask-jobqueue cluster without jobs yet; its settings are dask's own (`jobqueue.slurm`, `jobqueue.pbs`).

    Errors: `UsageError` where dask-jobqueue or a setting is missing.
    """
    try:
        from dask_jobqueue.pbs import PBSCluster
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        raise UsageError(
            f"--scheduler {scheduler} needs dask-jobqueue: install 'butd[queues]' in this environment"
        ) from error
    lacking = [
        name for name in ("cores", "memory") if dask.config.get(f"jobqueue.{scheduler}.{name}") is None
    ]
    if lacking:
        raise UsageError(
            f"--scheduler {scheduler}: what a job is like is not said ({' and '.join(lacking)}); write it under "
            f"jobqueue.{scheduler} in ~/.config/dask/jobqueue.yaml (docs/detect.md has an example)"
        )
    return {"slurm": SLURMCluster, "pbs": PBSCluster}[scheduler]()


def run_on_cluster(
    tasks: Sequence[BlockTask],
    client: Client,
    *,
    stopping: Callable[[], bool],
    on_images: Callable[[int], object],
) -> Iterator[tuple[BlockTask, BlockResult]]:
    """Run tasks and give each with its result as it ends, in the order in which they end.

    As many at a time as the workers have threads: a stop waits for these and for no others.

    Args:
        stopping: asked after each task whether the others are to be left.
        on_images: hears of the pictures of each block that is done.

    Errors: what a task raised; `ButdError` where the scheduler is lost or a block cannot be done.
    """
    waiting = deque(_Attempt(task) for task in tasks)
    running: dict[Future[BlockResult], _Attempt] = {}
    reminder = _Reminder(client)
    with _naming_a_lost_scheduler(client):
        while waiting or running:
            if not stopping():
                for _ in range(min(len(waiting), max(1, _num_threads(client)) - len(running))):
                    attempt = waiting.popleft()
                    running[attempt.submit(client)] = attempt
            elif not running:
                return
            done = _wait(list(running))
            reminder.look(idle=not done)
            for future in done:
                attempt = running.pop(future)
                try:
                    result = future.result()
                except (KilledWorker, MemoryError):
                    waiting.appendleft(attempt.carefully())
                else:
                    on_images(len(attempt.task.block.image_ids))
                    yield attempt.task, result


@dataclass(frozen=True)
class _Attempt:
    task: BlockTask
    careful_rounds: int = 0
    """So many times it was done picture by picture."""

    def submit(self, client: Client) -> Future[BlockResult]:
        function = _run_carefully_here if self.careful_rounds else run_block
        return client.submit(function, self.task, pure=False)

    def carefully(self) -> "_Attempt":
        index = self.task.block.index
        if self.careful_rounds == _CAREFUL_ROUNDS:
            raise ButdError(
                f"block {index}: its worker died again and again, also picture by picture; use fewer workers, and run "
                "the job again: it goes on with this block"
            )
        if not self.careful_rounds:
            logger.warning("block %d: its worker died or ran out of memory; picture by picture now", index)
        return _Attempt(self.task, self.careful_rounds + 1)


def _run_carefully_here(task: BlockTask) -> BlockResult:
    """In the worker, with the memory that the worker itself is allowed."""
    return run_carefully(task, int(get_worker().memory_manager.memory_limit or 0))


def _wait(futures: list[Future[BlockResult]]) -> set[Future[BlockResult]]:
    """Those that ended, after at most half a second."""
    try:
        return set(wait(futures, timeout=0.5, return_when="FIRST_COMPLETED").done)  # type: ignore[no-untyped-call]
    except TimeoutError:
        return set()


@contextmanager
def _naming_a_lost_scheduler(client: Client) -> Iterator[None]:
    """Say in words what dask's errors mean."""
    address = client.scheduler.address if client.scheduler is not None else "its address"
    try:
        yield
    except (ButdError, KilledWorker, MemoryError):
        raise
    except ImportError as error:
        raise ButdError(
            f"a worker of {address} cannot import what a block needs ({error}); install this version of butd in the "
            "environment of the workers"
        ) from error
    except Exception as error:
        if client.status == "running" and not isinstance(error, CancelledError):
            raise
        raise ButdError(
            f"lost the dask scheduler at {address}: it ended, or the network to it did; finished blocks are kept, the "
            "same command goes on when it is back"
        ) from error


def _num_threads(client: Client) -> int:
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return sum(worker["nthreads"] for worker in workers)


class _Reminder:
    """Says now and then that there is no worker."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._last = time.monotonic()

    def look(self, *, idle: bool) -> None:
        now = time.monotonic()
        if not idle or now - self._last < _SECONDS_BETWEEN_REMINDERS:
            return
        self._last = now
        if _num_threads(self._client) == 0:
            logger.warning("the cluster has no worker yet; waiting for one")


def _connect(address: str) -> Client:
    try:
        return Client(address, timeout=_CONNECT_SECONDS)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise InputNotFoundError(
            f"--scheduler {address}: no dask scheduler answers there ({error}); start one with 'dask scheduler'"
        ) from error


@contextmanager
def _start_cluster(scheduler: str, num_workers: int, worker_memory: str) -> Iterator[Any]:
    if scheduler in ("slurm", "pbs"):
        with queue_cluster(scheduler) as cluster:
            cluster.scale(jobs=num_workers)
            yield cluster
    elif scheduler == "cuda":
        try:
            dask_cuda = importlib.import_module("dask_cuda")
        except ImportError as error:
            raise UsageError(
                "--scheduler cuda needs dask-cuda: install it beside the CUDA build of torch"
            ) from error
        with dask_cuda.LocalCUDACluster(
            host="127.0.0.1", dashboard_address="127.0.0.1:0", plugins=[LeaveInterruptsToTheDriver()]
        ) as cluster:
            yield cluster
    else:
        _load_torch_once()
        with LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=num_workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=worker_memory,
            plugins=[LeaveInterruptsToTheDriver()],
        ) as cluster:
            yield cluster


def _load_torch_once() -> None:
    """Let the process that workers are forked from import what a block needs, before any worker asks for it.

    A worker that has died is back in half a second instead of 30 (two busy cores, measured here), and a cluster
    starts in half the time. Nothing is computed in that process, so no thread pool is copied in an odd state.
    """
    context = get_mp_context()  # type: ignore[no-untyped-call]
    context.set_forkserver_preload(list(_LOADED_ONCE))
