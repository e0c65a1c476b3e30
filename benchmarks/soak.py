"""Kills a caption run again and again; afterwards it has the very weights of one that nobody disturbed.

    python -m benchmarks.soak --kills 200

A run of the real command line, with dropout, scheduled sampling and loader workers (their number changes from
session to session), is ended by SIGKILL of itself or of a worker in every phase: imports, beginning (reading
checkpoint and tables), step, evaluation, saving, while a worker starts. Where each kill fell is known, see
soak_session.py. At the end weights, optimizer, random numbers and records of the two runs are compared by SHA-256.
A session would cost little more than its imports: so those that are not killed in them are forks of a process
that has imported everything (--fresh: none is). Prints a table, writes benchmarks/results/soak.json.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.record import write_result
from store_schema.metadata import StoreMetadata
from store_schema.records import ImageRecord
from store_schema.tables import write_table
from store_schema.writer import StoreWriter, write_block

SETTINGS = (
    "model.hidden_dim=16", "model.embed_dim=16", "model.attention_dim=8", "model.dropout=0.3", "data.batch_size=4",
    "data.captions_per_image=2", "training.eval_every=6", "training.save_every_steps=4", "training.keep_last=3",
    "training.log_every=3", "training.lr=1e-3", "training.num_threads=1", "training.device=cpu",
    "losses.scheduled_sampling_increase=0.05", "losses.scheduled_sampling_every_epochs=1",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
STEPS_PER_EPOCH = 10
STEPS_PER_KILL = 4
"""More than a killed session gets on by, so that all kills find a run to kill."""
MOST_EVENTS = {"imports": 1700, "beginning": 20, "saving": 35}
"""About as many as there are in the phase; a kill that would come later comes at the phase's end."""
MOST_SECONDS = {"step": 0.008, "evaluation": 0.03, "worker's start": 0.08}
MOST_ENTRIES = {"step": 6, "saving": 3}


def main() -> None:
    """Run the soak and print what it found; exit code 1 when the two runs differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of where the kills fall")
    parser.add_argument("--fresh", action="store_true", help="every session an interpreter of its own")
    parser.add_argument("--out", type=Path, help="keep the runs here (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = soak(options.out or Path(temporary), options.kills, options.seed, fresh=options.fresh)
    path = write_result("soak", result, ["butd", "torch"])
    print(table(result))
    print(f"written: {path}")
    sys.exit(0 if result["equal"] else 1)


def soak(folder: Path, kills: int, seed: int, *, fresh: bool = False) -> dict[str, Any]:
    """Make a small data set, train it undisturbed and disturbed, compare."""
    started = time.monotonic()
    make_data(folder)
    sets = [*SETTINGS, f"training.epochs={max(2, kills * STEPS_PER_KILL // STEPS_PER_EPOCH)}"]
    command = [
        "train", "caption", "--tables", str(folder / "tables"), "--store", str(folder / "regions.zarr"),
        *(word for setting in sets for word in ("--set", setting)), "--out",
    ]  # fmt: skip
    quiet, killed = folder / "runs" / "quiet", folder / "runs" / "killed"
    undisturbed([*command, str(quiet)])
    places = []
    with Sessions(folder / "stderr", fresh=fresh) as sessions:
        for number, fault in enumerate(tqdm(list(plan(kills, seed)), unit="kill", smoothing=0)):
            needs_worker = "worker" in fault["victim"] + fault["phase"]
            workers = 1 + number % 2 if needs_worker else number % 3
            code, stderr = sessions.run(fault, [*command, str(killed), "--num-workers", str(workers)])
            places.append(where_killed(code, stderr, fault))
    undisturbed([*command, str(killed)])
    prints = {run.name: fingerprints(run) for run in (quiet, killed)}
    return {
        "kills": len(places),
        "phases": Counter(f"{place['phase']}, {place['victim']}" for place in places),
        "equal": prints["quiet"] == prints["killed"],
        "sha256": prints,
        "steps": json.loads((quiet / "run.json").read_text())["total_steps"],
        "sessions_that_trained": len(json.loads((killed / "run.json").read_text())["sessions"]),
        "seconds": round(time.monotonic() - started),
        "places": places,
    }


def plan(kills: int, seed: int) -> Iterator[dict[str, Any]]:
    """Where each kill is to fall: the phases in turn, the places in them at random."""
    draw = random.Random(seed)
    ways = [
        ("imports", "run"), ("step", "run"), ("saving", "run"), ("evaluation", "run"), ("beginning", "run"),
        ("saving", "run"), ("step", "worker"), ("evaluation", "worker"), ("worker's start", "worker"),
        ("saving", "worker"), ("worker's start", "run"), ("imports", "run"),
    ]  # fmt: skip
    for number in range(kills):
        phase, victim = ways[number % len(ways)]
        yield {
            "phase": phase,
            "victim": victim,
            "entry": draw.randint(1, MOST_ENTRIES.get(phase, 1)),
            "events": draw.randint(1, MOST_EVENTS[phase]) if phase in MOST_EVENTS else 0,
            "seconds": draw.uniform(0.0001, MOST_SECONDS[phase]) if phase in MOST_SECONDS else 0.0,
        }


class Sessions:
    """Starts sessions with a fault; a context, whose process they are forks of."""

    def __init__(self, stderr: Path, *, fresh: bool) -> None:
        self._stderr, self._fresh = stderr, fresh
        self._server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.soak_session", "serve"],
            cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> "Sessions":
        return self

    def __exit__(self, *error: object) -> None:
        self._server.communicate()

    def run(self, fault: dict[str, Any], arguments: list[str]) -> tuple[int, str]:
        """Let a session run until it ends; give its exit code (-9: killed) and what it wrote to stderr."""
        if self._fresh or fault["phase"] == "imports":
            done = python(["benchmarks.soak_session", json.dumps(fault), *arguments])
            return done.returncode, done.stderr
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._stderr.write_text("")
        asked = {"fault": fault, "arguments": arguments, "stderr": str(self._stderr)}
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline()), self._stderr.read_text()


def undisturbed(arguments: list[str]) -> None:
    """Run `butd ARGUMENTS` to its end."""
    done = python(["pipeline.cli", *arguments])
    if done.returncode:
        raise RuntimeError(f"the run failed by itself: {done.stderr}")


def python(words: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a module in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def where_killed(code: int, stderr: str, fault: dict[str, Any]) -> dict[str, Any]:
    """What the session said just before the kill; an error where it ended otherwise than by the kill.

    A run whose worker is killed ends by itself, with one line.
    """
    said = [line.removeprefix("SOAK ") for line in stderr.splitlines() if line.startswith("SOAK ")]
    of_worker = code == 1 and "was killed (SIGKILL)" in stderr and "Traceback" not in stderr
    if len(said) != 1 or not (code == -signal.SIGKILL if fault["victim"] == "run" else of_worker):
        raise RuntimeError(f"{fault} ended with exit code {code}: {stderr[-3000:]}")
    place: dict[str, Any] = json.loads(said[0])
    return place


def fingerprints(run: Path) -> dict[str, str]:
    """SHA-256 of all that a run is to have in common with an undisturbed one."""
    import torch

    prints = {}
    for which in ("latest", "best"):
        name = json.loads((run / f"checkpoints/{which}.json").read_text())["checkpoint"]
        checkpoint = run / "checkpoints" / name
        prints[f"{which}: name"] = name
        prints[f"{which}: model.safetensors"] = hashlib.sha256(
            (checkpoint / "model.safetensors").read_bytes()
        ).hexdigest()
        state = torch.load(checkpoint / "state.pt", weights_only=True)
        for key in ("optimizer", "rng"):
            prints[f"{which}: {key}"] = hash_values(state[key])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = ("seconds", "steps_per_second")
    prints["metrics.jsonl without times"] = hash_values(
        [[(key, value) for key, value in record.items() if key not in times] for record in records]
    )
    kept = sorted(path.name for path in (run / "checkpoints").iterdir() if not path.name.startswith("."))
    prints["checkpoints kept"] = hash_values(kept)
    return prints


def hash_values(value: Any) -> str:
    """SHA-256 of nested lists and dictionaries of tensors and plain values."""
    import torch

    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)} ".encode() + part.numpy().tobytes())
        elif isinstance(part, dict):
            add(list(part.items()))
        elif isinstance(part, list | tuple):
            digest.update(f"{len(part)} ".encode())
            for item in part:
                add(item)
        else:
            digest.update(f"{part!r} ".encode())

    add(value)
    return digest.hexdigest()


def make_data(folder: Path) -> None:
    """Write 48 pictures with captions and regions that are noise around one of twelve things."""
    colors, nouns = ("red", "green", "blue", "white"), ("cube", "ball", "cup")
    names = [f"p{number:02}" for number in range(48)]
    things = [(colors[number % 4], nouns[number % 3]) for number in range(48)]
    splits = ["train" if number < 4 * STEPS_PER_EPOCH else "val" for number in range(48)]
    write_table(folder / "tables", "images", [
        {"image_id": name, "path": f"{name}.jpg", "width": 9, "height": 9, "split": split}
        for name, split in zip(names, splits, strict=True)
    ])  # fmt: skip
    write_table(folder / "tables", "captions", [
        {"image_id": name, "caption_id": f"{name}-{index}", "text": text, "split": split}
        for name, split, (color, noun) in zip(names, splits, things, strict=True)
        for index, text in enumerate((f"a {color} {noun}", f"there is one {noun} and it is {color}"))
    ])  # fmt: skip
    metadata = StoreMetadata(
        feature_dim=16, max_regions=4, min_regions=4, box_source="given", block_size=16,
        detector={"name": "drawn", "fingerprint": "drawn"}, selection={},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    boxes = np.tile(np.array([1, 1, 5, 5], np.float32), (4, 1))
    with StoreWriter.open(folder / "regions.zarr", metadata) as writer:
        for block in writer.plan(names):
            records = []
            for name in block.image_ids:
                color, noun = things[int(name[1:])]
                features = rng.normal(0, 0.3, (4, 16)).astype(np.float16)
                features[:, [colors.index(color), 4 + nouns.index(noun)]] += 1
                records.append(ImageRecord(name, 9, 9, boxes, features))
            writer.commit(block, write_block(folder / "regions.zarr", metadata, block, records))


def table(result: dict[str, Any]) -> str:
    """How many kills fell where, and what came out."""
    width = max(map(len, result["phases"]))
    lines = [f"{phase:<{width}}  {count:4}" for phase, count in sorted(result["phases"].items())]
    return "\n".join([
        f"{'phase, victim':<{width}}  kills", *lines,
        f"{result['kills']} kills in {result['seconds']} s, {result['steps']} steps; the same weights, optimizer, "
        f"random numbers and records as the undisturbed run: {'yes' if result['equal'] else 'NO'}",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
