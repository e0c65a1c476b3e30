"""Train in a queue with a time limit: write a job script that submits itself again until the run is done.

example: butd submit --slurm --gpus 1 -- train vqa --tables runs/scenes --store runs/regions.zarr --out runs/vqa
         butd submit --pbs --time 12h --memory 16G --dry-run -- train detector --tables runs/scenes --out runs/d
"""

import argparse
import subprocess
from pathlib import Path

from store_schema.errors import ButdError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `butd submit`."""
    queue = parser.add_mutually_exclusive_group(required=True)
    queue.add_argument("--slurm", dest="queue", action="store_const", const="slurm", help="by sbatch")
    queue.add_argument("--pbs", dest="queue", action="store_const", const="pbs", help="by qsub")
    parser.add_argument("--time", default="24h", help="limit of one job, at most 48h (default 24h)")
    parser.add_argument("--gpus", type=int, default=0, help="on one node; several share the run's batches")
    parser.add_argument("--cpus", type=int, default=0, help="cores")
    parser.add_argument("--memory", default="", metavar="16G", help="main memory")
    parser.add_argument("--partition", default="", help="partition, or queue of PBS")
    parser.add_argument("--account", default="", help="whose hours are spent")
    parser.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- train ...", help="the training command, after --"
    )


def run(options: argparse.Namespace) -> int:
    """Write <run folder>/job.sh and submit it, or print it."""
    from pipeline.training.job_script import Job, job_script
    from pipeline.training.stop import parse_duration

    job = Job(
        seconds=parse_duration(options.time),
        gpus=options.gpus,
        cpus=options.cpus,
        memory=options.memory,
        partition=options.partition,
        account=options.account,
    )
    arguments = _train_arguments(options.command)
    run_folder = _run_folder(arguments)
    script = run_folder / "job.sh"
    text = job_script(options.queue, job, arguments, run_folder, script)
    if options.dry_run:
        print(text, end="")
        return 0
    run_folder.mkdir(parents=True, exist_ok=True)
    script.write_text(text, encoding="utf-8")
    print(_submit(options.queue, script))
    print(f"script: {script}; the sessions' output: {run_folder / 'job.log'}")
    return 0


def _train_arguments(command: list[str]) -> list[str]:
    """What follows `butd`; the name itself may stand before it."""
    words = command[1:] if command[:1] == ["--"] else command
    words = words[1:] if words[:1] == ["butd"] else words
    if words[:1] != ["train"]:
        came = f"{words[0]!r} came" if words else "nothing came"
        raise UsageError(f"a training command was expected after --, as -- train caption ...; {came}")
    return words


def _run_folder(arguments: list[str]) -> Path:
    """Check the training command now, rather than hours later in the queue; return its run folder."""
    from pipeline.cli import Parser
    from pipeline.commands import train

    parser = Parser(prog="butd train", allow_abbrev=False)
    parser.add_argument("--verbose", action="store_true")
    train.add_arguments(parser)
    options = parser.parse_args(arguments[1:])
    if options.time_limit is not None:
        raise UsageError("--time-limit of the training command follows from the job's: give --time before --")
    out: Path = options.out
    inside = Path(options.resume).resolve().is_relative_to(out.resolve())
    if options.resume not in ("auto", "latest") and (inside or "/" not in options.resume):
        raise UsageError(
            f"--resume {options.resume}: the job runs the same command again and again, and would go back each "
            "time; branch from it with another --out, or leave --resume out"
        )
    return out


def _submit(queue: str, script: Path) -> str:
    """Hand the script to the queue; return what the queue says."""
    from pipeline.training.job_script import SUBMIT_COMMANDS

    program = SUBMIT_COMMANDS["slurm" if queue == "slurm" else "pbs"]
    try:
        done = subprocess.run([program, str(script.absolute())], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no {program} here: run this where jobs are submitted from, or {program} {script} there"
        ) from error
    if done.returncode:
        raise ButdError(f"{program} refused {script}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()
