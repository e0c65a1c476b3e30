"""Block tasks in this process, each one synchronous dask task: one after the other, or several on threads."""

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import partial
from itertools import islice

import torch
from dask.delayed import delayed

from stage1_detect.block_task import BlockResult, BlockTask, run_block
from stage1_detect.careful import run_carefully

_Results = Generator[tuple[BlockTask, BlockResult], None, None]


def run_in_order(
    tasks: Sequence[BlockTask], *, stopping: Callable[[], bool], on_images: Callable[[int], object]
) -> _Results:
    """Each task with its result, until all are done or `stopping` says so. `on_images` hears of pictures done."""
    for task in tasks:
        yield task, _compute(task, on_images)
        if stopping():
            return


def run_on_threads(
    tasks: Sequence[BlockTask],
    num_threads: int,
    *,
    stopping: Callable[[], bool],
    on_images: Callable[[int], object],
) -> _Results:
    """`run_in_order` with as many tasks at a time as there are threads, so that a stop waits for no others."""
    torch_threads = torch.get_num_threads()
    left = threading.Event()

    def on_images_while_here(number: int) -> None:
        if left.is_set():
            raise _LeftError
        on_images(number)

    with ThreadPoolExecutor(num_threads, thread_name_prefix="block") as pool:
        try:
            waiting = iter(tasks)
            running = {
                pool.submit(_compute, task, on_images_while_here): task
                for task in islice(waiting, num_threads)
            }
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    yield task, future.result()
                    for following in islice(waiting, 0 if stopping() else 1):
                        running[pool.submit(_compute, following, on_images_while_here)] = following
        finally:
            left.set()  # an interrupt or an error: do not wait for whole blocks that nobody will commit
            torch.set_num_threads(torch_threads)


class _LeftError(Exception):
    """The driver has gone; ends a block between two batches."""


def _compute(task: BlockTask, on_images: Callable[[int], object]) -> BlockResult:
    """One block as one dask task in this thread; picture by picture in a process of its own where memory ended."""
    try:
        result: BlockResult = delayed(partial(run_block, task, on_images), pure=False)().compute(
            scheduler="synchronous"
        )
    except MemoryError:
        return run_carefully(task)
    return result
