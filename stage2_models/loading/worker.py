"""The life of a worker process: wait for a batch's rows, read them into a slot, say which slot is ready.

A worker holds no state that matters. It ends when the main process does, or closes the pipe.
"""

import os
import pickle
import select
import socket
import struct
import traceback
from collections import deque
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from stage2_models.loading.buffers import map_slots, slot_view
from stage2_models.loading.fill import LoaderError, fill
from stage2_models.loading.readahead import ReadAhead
from store_schema.errors import ButdError

PARENT_CHECK_SECONDS = 1.0
JOB = struct.Struct("<qii")
"""A batch to read: its ticket, its slot, the number of its rows, which lie in the slot."""
DONE = struct.Struct("<qii")
"""A batch that was read: its ticket, its slot, K. Where reading failed, a pickled (error, traceback as text)
follows, and K means nothing."""
NO_TICKET = -1
"""The ticket of an answer that belongs to no batch: the worker could not start."""
MESSAGE_BYTES = 1 << 17
"""More than any message has; the sockets keep messages whole."""


def serve(channel: socket.socket, parent: int) -> None:
    """Fill slots as the main process asks, until it closes the loader or is dead."""
    channel.settimeout(PARENT_CHECK_SECONDS)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _serve(channel, parent)


def _serve(channel: socket.socket, parent: int) -> None:
    try:
        store, layout, fd = pickle.loads(_receive(channel, parent))  # opens the store
    except EOFError:
        raise
    except Exception as error:
        reason = LoaderError(f"the store cannot be opened: {type(error).__name__}: {error}")
        channel.send(_failure(NO_TICKET, 0, reason))
        while True:  # stay until that was read
            _receive(channel, parent)
    memory = map_slots(fd)
    os.close(fd)
    readahead = ReadAhead(store)
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    jobs: deque[tuple[int, int, NDArray[np.int64]]] = deque()
    while True:
        while not jobs or waiting.poll(0):
            ticket, slot, num_rows = JOB.unpack(_receive(channel, parent))
            rows = layout.rows(slot_view(memory, layout, slot), num_rows)
            readahead.ask(rows)  # the disk reads it while the batch before is copied
            jobs.append((ticket, slot, rows))
        ticket, slot, rows = jobs.popleft()
        try:
            num_slots = fill(store, rows, layout, slot_view(memory, layout, slot))
        except ButdError as error:
            channel.send(_failure(ticket, slot, error))
        else:
            channel.send(DONE.pack(ticket, slot, num_slots))


def _receive(channel: socket.socket, parent: int) -> bytes:
    """Wait for a message. A forked sibling may hold the socket open, so the parent is looked for as well."""
    while True:
        try:
            message = channel.recv(MESSAGE_BYTES)
        except TimeoutError:
            if os.getppid() != parent:
                raise EOFError from None
            continue
        if not message:
            raise EOFError
        return message


def _failure(ticket: int, slot: int, error: ButdError) -> bytes:
    """The answer of a batch that could not be read. To be called where the error is handled."""
    return DONE.pack(ticket, slot, 0) + pickle.dumps((error, traceback.format_exc()))
