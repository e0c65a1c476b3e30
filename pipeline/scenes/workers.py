"""The pool that draws pictures in several processes. Imports nothing heavy: every worker imports this file."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from PIL import Image

from pipeline.scenes.picture import PictureOrder, SceneRows, make_pictures

CHUNK_SIZE = 64
"""Pictures a task: about a third of a second."""


def choose_workers(num_images: int) -> int:
    """At most one worker for two chunks: starting one costs as much as drawing a hundred pictures."""
    return min(len(os.sched_getaffinity(0)), max(1, num_images // (2 * CHUNK_SIZE)))


def draw_chunks(order: PictureOrder, chunks: Sequence[range], workers: int) -> Iterator[SceneRows]:
    """The chunks' rows in order, drawn in this process (1 worker) or by fresh ones that end with it."""
    if workers == 1:
        yield from (make_pictures(order, chunk) for chunk in chunks)
        return
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            futures = [pool.submit(make_pictures, order, chunk) for chunk in chunks]
            yield from (future.result() for future in futures)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it even when it is killed.

    Pillow keeps freed blocks for the next picture: without it, page faults take 15% of the time.
    """
    Image.core.set_blocks_max(64)  # type: ignore[attr-defined]  # documented, but not in its types
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "only worker processes run this"

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
