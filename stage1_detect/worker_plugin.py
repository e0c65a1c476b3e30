"""What every dask worker process of this machine does first. Light: it is loaded before the worker answers."""

import signal

from distributed import WorkerPlugin


class LeaveInterruptsToTheDriver(WorkerPlugin):
    """Ctrl-C reaches every process of a terminal, and only the driver may decide what it means."""

    def setup(self, worker: object) -> None:
        """Runs in the worker's main thread when it starts, also after a restart."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
