"""Worker processes that fill the slots of a ring of shared buffers and send back only a slot's number.

Stock `DataLoader` workers allocate, send and copy every batch, which costs more than reading it (DESIGN §5).
Here nothing of a batch's size is allocated or sent after the start: a job is 16 bytes, its rows lie in its slot,
and its answer is 16 bytes. After a step that left the cores free, caches are cold and each line of Python costs
several times as much as in a tight loop; so what happens for a batch in the main process is kept short.

The workers are fresh interpreters started by exec, not by `multiprocessing`: a user's script needs no
`if __name__ == "__main__"`, is not imported a second time, and torch is not imported at all; no fork server or
resource tracker remains. They end by themselves when the main process is gone.
"""

import logging
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray

from stage2_models.loading.buffers import SlotPool
from stage2_models.loading.fill import LoaderError
from stage2_models.loading.worker import DONE, JOB, MESSAGE_BYTES, NO_TICKET

if TYPE_CHECKING:
    from store_schema.reader import RegionStore

logger = logging.getLogger(__name__)

PREFETCH = 2
"""Batches asked of each worker ahead of time: one that it reads, and one for which it may call the disk."""
PATIENCE_SECONDS = 60.0
"""Waiting time for a batch after which the log says so."""
START = (
    "import pickle, socket, sys; channel = socket.socket(fileno=int(sys.argv[1])); "
    f"sys.path[:] = pickle.loads(channel.recv({MESSAGE_BYTES})); "
    "from stage2_models.loading.worker import serve; serve(channel, int(sys.argv[2]))"
)
COPY_PAST_THE_CACHE = "glibc.cpu.x86_non_temporal_threshold=32768"
"""Makes glibc copy from 32 KB on with stores that do not first fetch what they overwrite: 1.3 times faster at batch
64 and 1.5 times at 256, where a step on the CPU then reads the batch as fast as before (measured November 2026,
Xeon, 36 x 2048 float16). Other processors and C libraries take no notice."""


class WorkerTraceback(Exception):
    """The traceback in the worker, as text; what Python prints above our own."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    channel: socket.socket
    num_jobs: int = 0


@dataclass(frozen=True)
class _Done:
    """A batch that lies in its slot, or why it does not."""

    slot: int
    num_slots: int
    failure: bytes


@dataclass
class _Run:
    """The batches of one `read`, from the first not yet asked for."""

    batches: Sequence[NDArray[np.int64]]
    first_ticket: int
    num_asked: int = 0
    done: dict[int, _Done] = field(default_factory=dict)


class WorkerRing:
    """A pool's slots, filled by processes. One reader at a time; a new `read` ends the one before."""

    def __init__(self, store: "RegionStore", pool: SlotPool, num_workers: int) -> None:
        self._pool = pool
        self._next_ticket = 0
        self._num_jobs = 0
        self._run = _Run([], 0)
        self._workers: list[_Worker] = []
        self._stop = weakref.finalize(self, _stop, self._workers)
        for _ in range(num_workers):
            self._workers.append(_start_worker(pool))  # all start at the same time
        self._answers = select.poll()
        self._worker_of = {worker.channel.fileno(): worker for worker in self._workers}
        for worker in self._workers:
            self._answers.register(worker.channel, select.POLLIN)
            self._send(worker, pickle.dumps((store, pool.layout, pool.fd)))

    def read(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[tuple[int, int]]:
        """Start reading batches, given by their rows, and iterate over (slot, K) in the same order.

        The slots are the caller's, who leases them or gives them back. Workers start at once; an iterator
        that is dropped half-way costs nothing but the batches under way.
        """
        for done in self._run.done.values():
            self._pool.give_back(done.slot)
        run = self._run = _Run(batches, self._next_ticket)
        self._next_ticket += len(batches)
        self._ask(run)
        return self._results(run)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """End the workers. Tensors in the ring's memory stay valid."""
        self._stop()

    def _results(self, run: _Run) -> Iterator[tuple[int, int]]:
        for number in range(len(run.batches)):
            assert run is self._run, "read() was called again"
            self._ask(run)
            while run.first_ticket + number not in run.done:
                self._receive(run, number)
            done = run.done.pop(run.first_ticket + number)
            if done.failure:
                self._pool.give_back(done.slot)
                _raise_failure(done.failure)
            yield done.slot, done.num_slots

    def _ask(self, run: _Run) -> None:
        """Give the workers jobs until each has `PREFETCH`, or that many batches wait to be consumed."""
        limit = PREFETCH * len(self._workers)
        while run.num_asked < len(run.batches) and self._num_jobs + len(run.done) < limit:
            slot = self._pool.take(self._num_jobs_beside)
            assert slot is not None  # the pool holds `limit` slots more than are ever leased
            worker = self._worker_for(slot)
            rows = run.batches[run.num_asked]
            self._pool.layout.rows(self._pool.view(slot), len(rows))[:] = rows
            self._send(worker, JOB.pack(run.first_ticket + run.num_asked, slot, len(rows)))
            worker.num_jobs += 1
            self._num_jobs += 1
            run.num_asked += 1

    def _worker_for(self, slot: int) -> _Worker:
        """Each slot is always filled by the same worker: what a process touches is counted as its own, so four
        workers that each touch every slot would be accounted five times the memory."""
        return self._workers[slot % len(self._workers)]

    def _num_jobs_beside(self, slot: int) -> int:
        return self._worker_for(slot).num_jobs

    def _receive(self, run: _Run, number: int) -> None:
        """Wait for any worker's answer, or its death, whose sign is the end of its pipe."""
        ready = self._answers.poll(PATIENCE_SECONDS * 1e3)
        if not ready:
            logger.warning(
                "waiting for batch %s for more than %.0f s; is the disk or network file system of the store "
                "stuck, or a worker stopped? (processes %s)", number, PATIENCE_SECONDS, self.pids,
            )  # fmt: skip
        for descriptor, _ in ready:
            worker = self._worker_of[descriptor]
            try:
                answer = worker.channel.recv(MESSAGE_BYTES)
            except ConnectionResetError:
                answer = b""
            if not answer:
                self._raise_death(worker)
            ticket, slot, num_slots = DONE.unpack_from(answer)
            failure = answer[DONE.size :]
            if ticket == NO_TICKET:
                _raise_failure(failure)
            worker.num_jobs -= 1
            self._num_jobs -= 1
            if ticket >= run.first_ticket:
                run.done[ticket] = _Done(slot, num_slots, failure)
            else:
                self._pool.give_back(slot)  # asked for by an iterator that was dropped

    def _send(self, worker: _Worker, message: bytes) -> None:
        try:
            worker.channel.send(message)
        except (BrokenPipeError, ConnectionResetError):
            self._raise_death(worker)

    def _raise_death(self, worker: _Worker) -> NoReturn:
        code = worker.process.wait()
        name = f"loader worker {self._workers.index(worker)} (process {worker.process.pid})"
        raise LoaderError(f"{name} {_explain(code)}")


def _raise_failure(failure: bytes) -> NoReturn:
    """Raise what a worker met; the bytes are those of our own process, on a socket that nobody else has."""
    error, its_traceback = pickle.loads(failure)
    raise error from WorkerTraceback(its_traceback)


def _explain(code: int) -> str:
    """Say in words what the end of a worker means."""
    if code == -signal.SIGKILL:
        return (
            "was killed (SIGKILL); if nobody did that, the system ran out of memory: use fewer workers or a "
            "smaller batch size, or give the job more memory"
        )
    if code == -signal.SIGBUS:
        return (
            "met a hole in a mapped file (SIGBUS): a file of the store was cut short while it was read, or its "
            "disk failed; run `butd store verify`, and open stores on network file systems with mmap=False"
        )
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}; what it said stands above"


def _start_worker(pool: SlotPool) -> _Worker:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    tunables = ":".join(filter(None, [os.environ.get("GLIBC_TUNABLES"), COPY_PAST_THE_CACHE]))
    with theirs, _signals_blocked():
        process = subprocess.Popen(
            [sys.executable, "-c", START, str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno(), pool.fd],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ
            | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "GLIBC_TUNABLES": tunables},
        )
    ours.send(pickle.dumps(sys.path))
    return _Worker(process, ours)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block what a terminal or queue sends to a whole job; a process started meanwhile keeps it blocked.

    The main process saves its work on such a signal, and needs its workers until it has done so.
    """
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop(workers: list[_Worker]) -> None:
    """End the workers, who have nothing to lose. In a forked copy of the main process this does nothing to
    them: `Popen` signals only own children."""
    for worker in workers:
        worker.channel.close()
        worker.process.kill()
    for worker in workers:
        worker.process.wait()
