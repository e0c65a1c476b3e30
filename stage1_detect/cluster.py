"""Block tasks on a dask cluster of processes on this machine.

Each worker process loads torch first, which takes seconds, so it pays for long jobs only. Scheduler and workers
listen on the loopback address.
"""

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from distributed import Client, Future, LocalCluster, WorkerPlugin, as_completed
from distributed.scheduler import KilledWorker

from stage1_detect.block_task import BlockResult, BlockTask, run_block
from store_schema.errors import ButdError


def run_on_cluster(
    tasks: Sequence[BlockTask], num_workers: int, *, stopping: Callable[[], bool]
) -> Iterator[tuple[BlockTask, BlockResult]]:
    """Run tasks and give each with its result as it ends, in the order in which they end.

    As many at a time as there are workers: a stop waits for these and for no others.

    Args:
        num_workers: processes, each with one task at a time.
        stopping: asked after each task whether the others are to be left.

    Errors: what a task raised; `ButdError` where a block's worker died again and again.
    """
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
        logging.getLogger(name).setLevel(logging.WARNING)  # it reports every connection otherwise
    with (
        LocalCluster(  # type: ignore[no-untyped-call]  # distributed is typed in part, here and below
            n_workers=num_workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        Client(cluster) as client,  # type: ignore[no-untyped-call]
    ):
        client.register_plugin(_LeaveInterruptsToTheDriver())
        waiting = iter(tasks)
        task_of = {client.submit(run_block, task, pure=False): task for task in islice(waiting, num_workers)}
        finished = as_completed(list(task_of))  # type: ignore[no-untyped-call]
        for future in finished:
            task = task_of.pop(future)
            yield task, _result(future, task)
            for following in islice(waiting, 0 if stopping() else 1):
                submitted = client.submit(run_block, following, pure=False)
                task_of[submitted] = following
                finished.add(submitted)  # type: ignore[no-untyped-call]


def _result(future: Future[BlockResult], task: BlockTask) -> BlockResult:
    try:
        return future.result()
    except KilledWorker as error:
        raise ButdError(
            f"block {task.block.index}: its worker died several times, perhaps out of memory; use fewer workers or a "
            "smaller batch, and run the job again: it goes on with this block"
        ) from error


class _LeaveInterruptsToTheDriver(WorkerPlugin):
    """Ctrl-C reaches every process of a terminal, and only the driver may decide what it means."""

    def setup(self, worker: object) -> None:
        """Runs in the worker's main thread when it starts, also after a restart."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
