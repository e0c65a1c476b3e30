"""Job scripts, really executed: by a stand-in for the queue's command, of a program that stands in for Python, and of
a real run."""

import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.training.job_script import Job, Queue, job_script
from pipeline.training.records import pointed_to, read_record
from store_schema.errors import UsageError

QUEUES: tuple[Queue, ...] = ("slurm", "pbs")
ODD = "a folder 'with' $HOME, \"quotes\" & more"


def program(path: Path, text: str) -> Path:
    """Write an executable."""
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a difficult name to work in, and sbatch and qsub that run a script until it ends."""
    work = tmp_path / ODD
    (work / "runs").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "qsub"):
        program(tmp_path / "bin" / name, f'#!/bin/bash\necho {name} >> "{tmp_path}/submitted"\nbash "$1"\n')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(work)
    return work


def run_job(
    work: Path, monkeypatch: pytest.MonkeyPatch, body: str, *, queue: Queue = "slurm", job: Job | None = None
) -> "subprocess.Popen[bytes]":
    """Start a job whose "Python" is the shell script `body`, in which $run is the run folder."""
    run = work / "runs" / "my run"
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    stand_in = program(work / "python", f"#!/bin/bash\nrun={shlex.quote(str(run))}\n{body}\n")
    monkeypatch.setattr(sys, "executable", str(stand_in))
    script = run / "job.sh"
    arguments = ["train", "vqa", "--out", str(run), "--set", "model.form='a b'"]
    script.write_text(job_script(queue, job or Job(), arguments, run, script))
    return subprocess.Popen(["bash", str(script)], start_new_session=True)


def submissions(work: Path) -> int:
    file = work.parent / "submitted"
    return len(file.read_text().splitlines()) if file.exists() else 0


def log_of(work: Path) -> str:
    return (work / "runs" / "my run" / "job.log").read_text()


GOES_ON = """
count=$(($(cat count 2> /dev/null) + 1)); echo $count > count
echo "step $count" > "$run/checkpoints/latest.json"
printf '%s\\n' "$@" > arguments
[ $count -eq 4 ] || exit 75
"""


@pytest.mark.parametrize("queue", QUEUES)
def test_a_job_submits_itself_until_the_run_is_done_whatever_its_paths_are_called(
    work: Path, monkeypatch: pytest.MonkeyPatch, queue: Queue
) -> None:
    assert run_job(work, monkeypatch, GOES_ON, queue=queue).wait(60) == 0
    assert submissions(work) == 3
    given = (work / "arguments").read_text().splitlines()
    run = str(work / "runs" / "my run")
    assert given[:8] == ["-m", "pipeline.cli", "train", "vqa", "--out", run, "--set", "model.form='a b'"]
    assert given[8:] == ([] if queue == "slurm" else ["--time-limit", "86280s"])


@pytest.mark.parametrize("code", [0, 1, 2, 130, 137])
def test_any_other_end_of_the_command_is_the_jobs_end(
    work: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    assert run_job(work, monkeypatch, f"exit {code}").wait(60) == code
    assert submissions(work) == 0


def test_a_session_that_got_no_further_is_not_followed_by_another(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = 'echo "step 7" > "$run/checkpoints/latest.json"; exit 75'
    assert run_job(work, monkeypatch, body).wait(60) == 1
    assert submissions(work) == 1  # the first session came to step 7, the second no further
    assert "got no further than step 7; give more time" in log_of(work)


LISTENS = """
trap 'echo heard USR1; sleep 0.2; echo later > "$run/checkpoints/latest.json"; exit $((75 * (count < 2)))' USR1
trap 'echo heard TERM; echo later > "$run/checkpoints/latest.json"; exit 75' TERM
count=$(($(cat count 2> /dev/null) + 1)); echo $count > count
[ $count -eq 2 ] && exit 0
touch ready
while :; do sleep 0.02; done
"""


@pytest.mark.parametrize(("number", "following"), [(signal.SIGUSR1, 1), (signal.SIGTERM, 0)])
def test_the_queues_signal_reaches_the_command_whose_end_is_waited_for(
    work: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, following: int
) -> None:
    """Ahead of the limit the run goes on in another job; a job that is cancelled (SIGTERM) is not begun again."""
    process = run_job(work, monkeypatch, LISTENS)
    while not (work / "ready").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(60) == 0
    assert f"heard {number.name.removeprefix('SIG')}" in log_of(work)
    assert submissions(work) == following
    assert ("the job was cancelled" in log_of(work)) == (following == 0)


def test_what_is_asked_of_the_queue_stands_at_the_top() -> None:
    job = Job(seconds=12 * 3600, gpus=2, cpus=8, memory="16G", partition="long", account="lab")
    run = Path("runs/my caption run 12")
    slurm = job_script("slurm", job, ["train"], run, run / "job.sh").splitlines()
    assert [line for line in slurm if line.startswith("#SBATCH")] == [
        "#SBATCH --job-name=butd-my-caption",
        "#SBATCH --time=12:00:00",
        "#SBATCH --signal=B:USR1@120",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks=1",
        "#SBATCH --requeue",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --gres=gpu:2",
        "#SBATCH --mem=16G",
        "#SBATCH --partition=long",
        "#SBATCH --account=lab",
    ]
    pbs = job_script("pbs", job, ["train"], run, run / "job.sh").splitlines()
    assert [line for line in pbs if line.startswith("#PBS")] == [
        "#PBS -N butd-my-caption",
        "#PBS -l walltime=12:00:00",
        "#PBS -l select=1:ncpus=8:ngpus=2:mem=16gb",
        "#PBS -j oe",
        "#PBS -V",
        "#PBS -q long",
        "#PBS -A lab",
    ]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"seconds": 49 * 3600}, r"--time 49:00:00: expected at most 48 hours"),
        ({"gpus": -1}, "--gpus -1"),
        ({"memory": "16 GB"}, "expected a number with K, M, G or T"),
        ({"partition": "long\n#SBATCH --wrap=x"}, "--partition"),
    ],
)
def test_what_no_queue_grants_is_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Job(**asked)  # type: ignore[arg-type]


def test_a_dry_run_prints_the_script_and_leaves_nothing(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--pbs", "--time", "90m", "--dry-run", "--", "train", "vqa", *TABLES]) == 0
    text = capsys.readouterr().out
    assert "#PBS -l walltime=01:30:00" in text
    assert "-m pipeline.cli train vqa --tables scenes --out 'runs/a b' --time-limit 5280s &" in text
    assert not (work / "runs" / "a b").exists()


TABLES = ["--tables", "scenes", "--out", "runs/a b"]
MISTAKES = {
    "no command": ([], "a training command was expected after --"),
    "another command": (["detect", "x"], "'detect' came"),
    "its own limit": (["train", "vqa", *TABLES, "--time-limit", "3h"], "give --time before --"),
    "back each time": (["train", "vqa", *TABLES, "--resume", "best"], "would go back each time"),
    "back by a path": (
        ["train", "vqa", *TABLES, "--resume", "runs/a b/checkpoints/epoch-0002"], "would go back each time",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_command_that_cannot_go_on_by_itself_is_refused_before_it_is_submitted(
    work: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    words, message = MISTAKES[mistake]
    assert main(["submit", "--slurm", "--", *words]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert submissions(work) == 0


def test_a_mistake_in_the_training_command_is_found_before_it_is_submitted(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["submit", "--slurm", "--", "train", "vqa", *TABLES, "--batchsize", "3"])
    assert "did you mean --batch-size?" in capsys.readouterr().err
    assert submissions(work) == 0


def test_a_queue_that_is_not_there_or_refuses_is_said(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program(work.parent / "bin" / "sbatch", "#!/bin/bash\necho no such account >&2; exit 1\n")
    assert main(["submit", "--slurm", "--", "train", "vqa", *TABLES]) == 1
    assert "sbatch refused runs/a b/job.sh: no such account" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(work))
    assert main(["submit", "--slurm", "--", "train", "vqa", *TABLES]) == 2
    assert "there is no sbatch here" in capsys.readouterr().err


WATCHING_SBATCH = """#!{python}
import pathlib, signal, subprocess, sys, time
run = pathlib.Path(sys.argv[1]).parent
def unfinished():
    return {{f for f in run.glob("checkpoints/step-*/checkpoint.json") if '"finished": false' in f.read_text()}}
pathlib.Path({submitted!r}).open("a").write("sbatch\\n")
before = unfinished()
job = subprocess.Popen(["bash", sys.argv[1]], start_new_session=True)
while job.poll() is None and not unfinished() - before:
    time.sleep(0.01)
if job.poll() is None:
    job.send_signal(signal.SIGUSR1)  # as --signal=B:USR1@120: to the script alone
sys.exit(job.wait())
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("gpus", "steps", "stops"), [(0, 400, 2), (2, 200, 1)])
def test_a_real_run_is_stopped_by_the_queue_several_times_and_finishes(
    work: Path, gpus: int, steps: int, stops: int
) -> None:
    """The stand-in sbatch asks each job to stop as soon as it has saved a checkpoint, every 100 steps. With two
    "GPUs" (of which there are none, so two processes on the CPU) under torchrun."""
    program(
        work.parent / "bin" / "sbatch",
        WATCHING_SBATCH.format(python=sys.executable, submitted=str(work.parent / "submitted")),
    )
    run, scenes = work / "runs" / "my run", work / "scenes"
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
    }

    def butd(*words: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *words], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (done.stderr, (run / "job.log").read_text())
        return done.stdout

    split = ("--splits", "train=.7,val=.3")
    butd("scenes", scenes, "--images", "12", "--size", "64", "--num-workers", "1", *split)
    sets = (
        "training.epochs=0", f"training.max_steps={steps}", "training.save_every_steps=100",
        "training.eval_every_epochs=0", "training.num_threads=1", "training.device=cpu", "data.batch_size=2",
    )  # fmt: skip
    output = butd(
        "submit", "--slurm", "--gpus", str(gpus), "--", "butd", "train", "vqa", "--tables", scenes, "--out", run,
        "--config", "vqa-question-only", *(word for setting in sets for word in ("--set", setting)),
    )  # fmt: skip
    assert "job.sh" in output
    assert submissions(work) > stops
    latest = pointed_to(run / "checkpoints", "latest")
    assert latest is not None
    record = read_record(latest)
    assert (record.finished, record.step) == (True, steps)
    assert log_of(work).count("stopped by SIGUSR1 at step") >= stops
