"""Block tasks on a dask cluster of this machine.

Costs a few seconds a worker process (each loads torch), so it pays for long jobs only.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from distributed import Client, Future, LocalCluster, WorkerPlugin, as_completed
from distributed.scheduler import KilledWorker

from stage1_detect.block_task import BlockResult, BlockTask, run_block
from store_schema.errors import ButdError


def run_on_cluster(
    tasks: Sequence[BlockTask], num_workers: int, *, processes: bool, stopping: Callable[[], bool]
) -> Iterator[tuple[BlockTask, BlockResult]]:
    """Run tasks and give each with its result as it ends, in the order in which they end.

    As many at a time as there are workers: a stop waits for these and for no others.

    Args:
        processes: workers are processes; else threads of this one.
        stopping: asked after each task whether the others are to be left.

    Errors: what a task raised; `ButdError` where a block's worker died again and again.
    """
    workers, threads = (num_workers, 1) if processes else (1, num_workers)
    torch_threads = torch.get_num_threads()
    with (
        LocalCluster(  # type: ignore[no-untyped-call]  # distributed is typed in part, here and below
            n_workers=workers, threads_per_worker=threads, processes=processes, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,  # type: ignore[no-untyped-call]
    ):
        if processes:
            client.register_plugin(_LeaveInterruptsToTheDriver())
        waiting = iter(tasks)
        task_of = {client.submit(run_block, task, pure=False): task for task in islice(waiting, num_workers)}
        finished = as_completed(list(task_of))  # type: ignore[no-untyped-call]
        try:
            for future in finished:
                task = task_of.pop(future)
                yield task, _result(future, task)
                for following in islice(waiting, 0 if stopping() else 1):
                    submitted = client.submit(run_block, following, pure=False)
                    task_of[submitted] = following
                    finished.add(submitted)  # type: ignore[no-untyped-call]
        finally:
            torch.set_num_threads(torch_threads)  # tasks on threads of this process set their own


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
