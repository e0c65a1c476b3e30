"""Processes that score captions while the model goes on: jobs go out, the next `collect` waits for all of them.

Each process holds its own copy of the scorer and nothing else; it ends when the main process does. No torch here.
"""

import multiprocessing
import signal
import weakref
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np
from numpy.typing import NDArray

from stage2_models.cider import CiderD
from store_schema.errors import ButdError


class ScoreWorkerError(ButdError):
    """A process that scores captions died, or could not score."""


class ScoreWorkers:
    """Scores captions in processes, in the order of the jobs.

    Args:
        scorer: copied to every process. workers: how many; 0 scores in this process, when it is asked to.
    """

    def __init__(self, scorer: CiderD, workers: int) -> None:
        self.scorer = scorer
        self._workers = workers
        self._processes: list[tuple[BaseProcess, Connection]] = []
        self._jobs: list[tuple[Sequence[int], Sequence[NDArray[np.int32]]]] = []
        weakref.finalize(self, _close, self._processes)

    def submit(self, pictures: Sequence[int], captions: Sequence[NDArray[np.int32]]) -> None:
        """Let captions be scored; arguments as `CiderD.score` takes them. Starts the processes at the first call."""
        self._jobs.append((pictures, captions))
        if not self._workers:
            return
        if not self._processes:
            self._start()
        for place, (_, channel) in enumerate(self._processes):
            part = slice(place, None, self._workers)
            try:
                channel.send((pictures[part], captions[part]))
            except OSError as error:
                raise self._dead(place) from error

    def collect(self) -> list[NDArray[np.float64]]:
        """Wait for the scores of all jobs since the last call, in their order.

        Errors: `ScoreWorkerError` where a process is dead (killed, perhaps for want of memory).
        """
        jobs, self._jobs = self._jobs, []
        if not self._workers:
            return [self.scorer.score(*job) for job in jobs]
        results = [np.empty(len(captions)) for _, captions in jobs]
        for result in results:
            for place, (_, channel) in enumerate(self._processes):
                try:
                    answer = channel.recv()
                except (EOFError, OSError) as error:
                    raise self._dead(place) from error
                if isinstance(answer, str):
                    raise ScoreWorkerError(f"captions could not be scored: {answer}")
                result[place :: self._workers] = answer
        return results

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        for _ in range(self._workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self.scorer), daemon=True)
            process.start()
            theirs.close()
            self._processes.append((process, ours))

    def _dead(self, place: int) -> ScoreWorkerError:
        process, _ = self._processes[place]
        process.join(1.0)
        return ScoreWorkerError(
            f"a process that scores captions is dead (exit code {process.exitcode}); was it killed for want of memory? "
            "Run the same command again, with fewer losses.score_workers where memory is short"
        )


def _serve(channel: Connection, scorer: CiderD) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process says when to end
    with suppress(EOFError, OSError):
        while True:
            pictures, captions = channel.recv()
            try:
                answer: NDArray[np.float64] | str = scorer.score(pictures, captions)
            except Exception as error:  # told to the main process, which raises it
                answer = f"{type(error).__name__}: {error}"
            channel.send(answer)


def _close(processes: list[tuple[BaseProcess, Connection]]) -> None:
    for _, channel in processes:
        channel.close()
    for process, _ in processes:
        process.join(1.0)
        if process.is_alive():
            process.kill()
