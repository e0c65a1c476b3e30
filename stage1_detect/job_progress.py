"""What a person sees of a batch job while it runs, and how a signal asks it to stop."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Literal, NoReturn

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from store_schema.records import Block, Problem

if TYPE_CHECKING:
    from stage1_detect.block_task import BlockResult

logger = logging.getLogger(__name__)

StopSignal = Literal["SIGINT", "SIGTERM"]


class Stop:
    """Whether a signal has asked to end the job, and which."""

    signal_name: StopSignal | None = None

    def asked(self) -> bool:
        """Whether the job is to end."""
        return self.signal_name is not None


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Let SIGINT and SIGTERM ask for a stop; a second SIGINT interrupts as usual. In the main thread only."""
    stop = Stop()
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
def progress_bar(total: int, shown: bool | None) -> Iterator["tqdm[NoReturn]"]:
    shown = sys.stderr.isatty() if shown is None else shown
    with ExitStack() as stack:
        if shown:
            stack.enter_context(logging_redirect_tqdm())
        yield stack.enter_context(tqdm(total=total, unit="images", disable=not shown, smoothing=0.1))


class Tally:
    """Counts what is done and says so now and then."""

    def __init__(self, pictures: int, done_before: int, all_blocks: int) -> None:
        self.pictures = pictures
        self.done_before = done_before
        self.all_blocks = all_blocks
        self.blocks = self.processed = self.regions = self.short = 0
        self.problems: list[Problem] = []
        self.stopped_by: StopSignal | None = None
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


_NAMED_PROBLEMS = 20
"""So many unreadable pictures are named in the log; all are in the store and in the summary."""

_SECONDS_BETWEEN_LINES = 5.0
