"""The life of a worker process: wait for a batch's rows, read them into a slot, say which slot is ready.

A worker holds no state that matters. It ends when the main process does, or closes the pipe.
"""

import os
import traceback
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stage2_models.loading.buffers import SlotLayout, map_slots, slot_view
from stage2_models.loading.fill import LoaderError, fill
from stage2_models.loading.readahead import ReadAhead
from store_schema.errors import ButdError

if TYPE_CHECKING:
    from store_schema.reader import RegionStore

PARENT_CHECK_SECONDS = 1.0
NO_TICKET = -1
"""The ticket of an answer that belongs to no batch: the worker could not start."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A batch to read."""

    ticket: int
    slot: int
    rows: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Done:
    """A batch that lies in its slot, or why it does not."""

    ticket: int
    slot: int
    num_slots: int = 0
    """K of this batch."""
    error: ButdError | None = None
    traceback: str = ""
    """The worker's own, as text."""


def serve(channel: "Connection[Any, Any]", parent: int) -> None:
    """Fill slots as the main process asks, until it closes the loader or is dead."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _serve(channel, parent)


def _serve(channel: "Connection[Any, Any]", parent: int) -> None:
    try:
        store, layout, fd = channel.recv()  # opens the store
    except Exception as error:
        reason = LoaderError(f"the store cannot be opened: {type(error).__name__}: {error}")
        channel.send(Done(ticket=NO_TICKET, slot=-1, error=reason, traceback=traceback.format_exc()))
        while True:  # stay until that was read
            _wait(channel, parent)
            channel.recv()
    memory = map_slots(fd)
    os.close(fd)
    readahead = ReadAhead(store)
    jobs: deque[Job] = deque()
    while True:
        while not jobs or channel.poll():
            if not jobs:
                _wait(channel, parent)
            job = channel.recv()
            readahead.ask(job.rows)  # the disk reads it while the batch before is copied
            jobs.append(job)
        job = jobs.popleft()
        channel.send(_do(job, store, layout, slot_view(memory, layout, job.slot)))


def _wait(channel: "Connection[Any, Any]", parent: int) -> None:
    """Wait for a message. A forked sibling may hold the pipe open, so the parent is looked for as well."""
    while not channel.poll(PARENT_CHECK_SECONDS):
        if os.getppid() != parent:
            raise EOFError


def _do(job: Job, store: "RegionStore", layout: SlotLayout, slot: NDArray[np.uint8]) -> Done:
    try:
        return Done(ticket=job.ticket, slot=job.slot, num_slots=fill(store, job.rows, layout, slot))
    except ButdError as error:
        return Done(ticket=job.ticket, slot=job.slot, error=error, traceback=traceback.format_exc())
