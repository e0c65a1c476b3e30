"""Stopping in time: signals and time limits, noticed at the next step's end.

SIGTERM, SIGUSR1 and a time limit ask for a stop with everything saved (status "stopped"); SIGINT asks for the
same once ("interrupted") and ends the process when it comes a second time. A request that comes during an
evaluation cuts the evaluation short; it is made up for when the run goes on.
"""

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Literal, Self

from store_schema.errors import UsageError

logger = logging.getLogger(__name__)

StopKind = Literal["stopped", "interrupted"]

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_MIN_RESERVE_SECONDS = 2.0


class EvaluationCut(BaseException):
    """Raised inside an evaluation by a request to stop. No Exception: nothing on the way may swallow it."""


def parse_duration(text: str) -> float:
    """Seconds from "3600", "90m", "24h", "1h30m" or "[[D-]HH:]MM:SS" as queues write it; UsageError otherwise."""
    text = text.strip()
    if clock := re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text):
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text)
    if not re.fullmatch(r"(?:\d+(?:\.\d+)?\s*[smhd]?\s*)+", text) or (
        len(parts) > 1 and any(not u for _, u in parts)
    ):
        raise UsageError(
            f"time limit {text!r}: expected seconds or a duration such as 90m, 24h, 1h30m, 23:30:00"
        )
    seconds_total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds_total <= 0:
        raise UsageError(f"time limit {text!r}: expected more than 0 seconds")
    return seconds_total


def queue_deadline(environment: Mapping[str, str], now: float) -> float | None:
    """When the queue will end this job, in seconds since 1970, or None outside of a queue.

    SLURM sets SLURM_JOB_END_TIME (seconds since 1970); PBS sets PBS_WALLTIME (seconds from the job's start, which
    is taken as `now`). What is no number is ignored with a warning.
    """
    for name, start in (("SLURM_JOB_END_TIME", 0.0), ("PBS_WALLTIME", now)):
        if value := environment.get(name):
            try:
                return start + float(value)
            except ValueError:
                logger.warning(
                    "%s is %r, not a number of seconds; the job's time limit is not known", name, value
                )
    return None


class StopRequest:
    """Whether the run is asked to stop; a context that listens to signals while it is open.

    Signal handlers can be set only in the main thread; in another one only the time limit is heard.
    """

    def __init__(self, time_limit_seconds: float | None = None) -> None:
        """Start the clock: the limit counts from here; the queue's own limit counts too, the earlier one holds."""
        now = time.time()
        deadlines = [
            deadline
            for deadline in (
                None if time_limit_seconds is None else now + time_limit_seconds,
                queue_deadline(os.environ, now),
            )
            if deadline is not None
        ]
        # From here on the monotonic clock: somebody may set the other one.
        self._deadline = time.monotonic() + min(deadlines) - now if deadlines else None
        self._kind: StopKind | None = None
        self._reason = ""
        self._evaluating = False
        self._previous: dict[int, object] = {}
        self.save_seconds = 0.0
        """Longest time that saving took: so much is kept free before the time limit."""
        self.step_seconds = 0.0
        """Longest step so far."""

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if callable(handler) else signal.SIG_DFL)
        self._previous.clear()

    @property
    def reason(self) -> str:
        """What asked for the stop, in words."""
        return self._reason

    def requested(self, next_seconds: float = 0.0) -> StopKind | None:
        """What kind of stop is asked for, or None; True time for `next_seconds` more work must be left too."""
        if self._kind is None and self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left < self._reserve() + self.step_seconds + next_seconds:
                self._kind, self._reason = "stopped", "the time limit"
        return self._kind

    @contextmanager
    def cutting_evaluation(self) -> Iterator[None]:
        """While this is open a request raises EvaluationCut at once, in the main thread."""
        timer = None
        if self._previous and self._deadline is not None:
            left = self._deadline - time.monotonic() - self._reserve()
            # A real signal: it ends what the main thread waits for, which interrupt_main does not.
            main_thread = threading.main_thread().ident
            timer = threading.Timer(max(0.0, left), signal.pthread_kill, [main_thread, signal.SIGUSR1])
            timer.daemon = True
            timer.start()
        self._evaluating = True
        try:
            yield
        finally:
            self._evaluating = False
            if timer is not None:
                timer.cancel()

    def _reserve(self) -> float:
        return max(_MIN_RESERVE_SECONDS, 2 * self.save_seconds)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Note the request; a second SIGINT ends the process now."""
        if number == signal.SIGINT and self._kind == "interrupted":
            raise KeyboardInterrupt
        interrupted = number == signal.SIGINT
        past_limit = self._deadline is not None and time.monotonic() > self._deadline - self._reserve() - 0.5
        self._kind = "interrupted" if interrupted else self._kind or "stopped"
        self._reason = "the time limit" if past_limit and not interrupted else signal.Signals(number).name
        if self._evaluating:
            self._evaluating = False
            raise EvaluationCut
