"""How far work on pictures is: a bar on a terminal, a line now and then in a log file."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NoReturn, Self

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0


class PictureBar:
    """Counts pictures; its length becomes known with `start`."""

    def __init__(self, what: str, unit: str = "images") -> None:
        """Args: what: one word for what is done to the pictures; unit: what is counted in their place."""
        self._what, self._unit = what, unit
        self._stack = ExitStack()
        self._bar: tqdm[NoReturn] | None = None
        self._done = self._total = 0
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def start(self, total: int, done: int) -> None:
        """Begin to count, from what was done before."""
        self._done, self._total = done, total
        if sys.stderr.isatty():
            self._stack.enter_context(logging_redirect_tqdm())
            bar: tqdm[NoReturn] = tqdm(
                total=total, initial=done, desc=self._what, unit=self._unit, dynamic_ncols=True
            )
            self._bar = self._stack.enter_context(bar)

    def update(self, number: int) -> None:
        """Count pictures that are done."""
        self._done += number
        if self._bar is not None:
            self._bar.update(number)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            logger.info("%s: %d/%d %s", self._what, self._done, self._total, self._unit)


def track_blocks(what: str) -> Callable[[list[int]], Iterator[int]]:
    """What shows a bar while the blocks of a store are gone through."""

    def track(blocks: list[int]) -> Iterator[int]:
        with PictureBar(what, "blocks") as bar:
            bar.start(len(blocks), 0)
            for block in blocks:
                yield block
                bar.update(1)

    return track
