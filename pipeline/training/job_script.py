"""Job scripts for SLURM and PBS that submit themselves again until a training run is done.

A queue gives a job so many hours; a run may need more. The script runs the training command, which saves in time
and exits with 75; then it submits itself again. It does not when the command ended in any other way, when
the job was cancelled, or when the session got no further than the one before. Light: no torch.
"""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from store_schema.errors import UsageError

Queue = Literal["slurm", "pbs"]

SUBMIT_COMMANDS: dict[Queue, str] = {"slurm": "sbatch", "pbs": "qsub"}
MAX_SECONDS = 48 * 3600
_SECONDS_TO_SAVE = 120
"""So long before the limit the queue asks to stop, or a quarter of the limit where that is less."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a training command needs of a queue."""

    seconds: float = 24 * 3600
    """Limit of one job, not of the run."""
    gpus: int = 0
    """On one node; with more than one the run is spread over so many processes by torchrun."""
    cpus: int = 0
    memory: str = ""
    """As 16G."""
    partition: str = ""
    """PBS calls it a queue."""
    account: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.seconds <= MAX_SECONDS:
            raise UsageError(
                f"--time {clock(self.seconds)}: expected at most 48 hours for a job; a run that needs more goes "
                "on in the next one"
            )
        for name in ("gpus", "cpus"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} {getattr(self, name)}: expected 0 (not asked for) or more")
        if self.memory and not re.fullmatch(r"\d+[KMGT]", self.memory):
            raise UsageError(f"--memory {self.memory}: expected a number with K, M, G or T, as 16G")
        for name in ("partition", "account"):
            if not re.fullmatch(r"[\w.,:@+-]*", getattr(self, name)):
                raise UsageError(f"--{name} {getattr(self, name)!r}: a name of the queue was expected")

    @property
    def seconds_to_save(self) -> int:
        """How long before the limit the run is asked to stop."""
        return int(min(_SECONDS_TO_SAVE, self.seconds / 4))


def job_script(queue: Queue, job: Job, arguments: list[str], run: Path, script: Path) -> str:
    """Write the text of a script for bash.

    Args:
        queue: whose directives to write.
        job: what to ask for.
        arguments: of `butd`, beginning with "train".
        run: the run folder that the arguments name; the sessions' output goes to job.log in it.
        script: where the text will lie, to be submitted again.
    """
    directives = _slurm(job, run) if queue == "slurm" else _pbs(job, run)
    # SLURM sends SIGUSR1 ahead of the limit and says when it is; PBS does neither.
    limit = [] if queue == "slurm" else ["--time-limit", f"{int(job.seconds) - job.seconds_to_save}s"]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.gpus}"]
    words = [sys.executable, *(launcher if job.gpus > 1 else []), "-m", "pipeline.cli", *arguments, *limit]
    quoted = {
        "directives": "\n".join(directives),
        "folder": shlex.quote(str(Path.cwd())),
        "run": shlex.quote(str(run.absolute())),
        "command": shlex.join(words),
        # torchrun answers a signal by killing its processes and a session's 75 by 1: it is left out of both.
        "receivers": '$(ps -o pid= --ppid "$pid")' if job.gpus > 1 else '"$pid"',
        "stopped": _STOPPED_BY_RECORD if job.gpus > 1 else '[ "$status" -eq 75 ]',
        "submit": f"{SUBMIT_COMMANDS[queue]} {shlex.quote(str(script.absolute()))}",
    }
    return _TEMPLATE.format(**quoted)


def clock(seconds: float) -> str:
    """A duration as queues read it: 24:00:00."""
    minutes, seconds_left = divmod(int(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds_left:02}"


_STOPPED_BY_RECORD = (
    """[ "$(grep '"status"' "$run/run.json" | tail -n 1 | tr -d ' ,')" = '"status":"stopped"' ]"""
)

_TEMPLATE = """#!/bin/bash
{directives}
# Written by `butd submit`. Submits itself again until the run is done.
run={run}
exec >> "$run/job.log" 2>&1
cd {folder} || exit 1
latest() {{ cat "$run/checkpoints/latest.json" 2> /dev/null; }}
before=$(latest)
{command} &
pid=$!
trap 'heard=1; kill -USR1 {receivers} 2> /dev/null' USR1
trap 'heard=1; cancelled=1; kill -TERM {receivers} 2> /dev/null' TERM
# A signal ends the waiting, not the training: then wait again.
while heard=; wait "$pid"; status=$?; [ -n "$heard" ]; do :; done
if ! {stopped}; then
    exit "$status"
elif [ -n "$cancelled" ]; then
    echo "butd submit: the job was cancelled; everything is saved, nothing is submitted again"
elif [ "$(latest)" = "$before" ]; then
    echo "butd submit: this job got no further than $before; give more time, evaluate less, or see above; \
nothing is submitted again"
    exit 1
else
    {submit}
fi
"""


def _slurm(job: Job, run: Path) -> list[str]:
    options = [
        f"--job-name={_job_name(run)}",
        f"--time={clock(job.seconds)}",
        f"--signal=B:USR1@{job.seconds_to_save}",
        "--nodes=1",
        "--ntasks=1",
        "--requeue",
        *([f"--cpus-per-task={job.cpus}"] if job.cpus else []),
        *([f"--gres=gpu:{job.gpus}"] if job.gpus else []),
        *([f"--mem={job.memory}"] if job.memory else []),
        *([f"--partition={job.partition}"] if job.partition else []),
        *([f"--account={job.account}"] if job.account else []),
    ]
    return [f"#SBATCH {option}" for option in options]


def _pbs(job: Job, run: Path) -> list[str]:
    chunk = [
        "select=1",
        *([f"ncpus={job.cpus}"] if job.cpus else []),
        *([f"ngpus={job.gpus}"] if job.gpus else []),
        *([f"mem={job.memory.lower()}b"] if job.memory else []),
    ]
    options = [
        f"-N {_job_name(run)}",
        f"-l walltime={clock(job.seconds)}",
        f"-l {':'.join(chunk)}",
        "-j oe",
        "-V",
        *([f"-q {job.partition}"] if job.partition else []),
        *([f"-A {job.account}"] if job.account else []),
    ]
    return [f"#PBS {option}" for option in options]


def _job_name(run: Path) -> str:
    """A name that PBS takes too: at most 15 letters, digits and dashes."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", f"butd-{run.name}")[:15]
