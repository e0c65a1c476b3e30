"""How far a run is: a bar on a terminal, a line now and then in a log file."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0


class ProgressReport:
    """Shows steps as they are done. `show_bar` None: where stderr is a terminal."""

    def __init__(self, first_step: int, total_steps: int, *, show_bar: bool | None, is_first: bool) -> None:
        """Begin to count time; only the first of several processes reports."""
        self._first_step, self._total = first_step, total_steps
        self._started = time.monotonic()
        self._last_line = float("-inf")
        self._is_first = is_first
        with_bar = is_first and (sys.stderr.isatty() if show_bar is None else show_bar)
        self._bar = (
            tqdm(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True) if with_bar else None
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep log lines off the bar while it is there; take it away at the end."""
        with ExitStack() as stack:
            if self._bar is not None:
                stack.enter_context(logging_redirect_tqdm())
                stack.callback(self._bar.close)
            yield

    def step_done(self) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update()

    def numbers(self, step: int, epoch: int, loss: float, lr: float, steps_per_second: float) -> None:
        """Show the loss; in a log file at most every ten seconds, and at the last step."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
        elif self._is_first and (now - self._last_line >= _SECONDS_BETWEEN_LINES or step == self._total):
            self._last_line = now
            left = (now - self._started) / (step - self._first_step) * (self._total - step)
            logger.info(
                "step %d/%d (epoch %d): loss %.4g, lr %.2g, %.1f steps/s, %s left",
                *(step, self._total, epoch, loss, lr, steps_per_second, clock(left)),
            )


def clock(seconds: float) -> str:
    """A duration as 1:30 or 2:05:00."""
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"
