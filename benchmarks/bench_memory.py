"""Memory of a VQA run on a large store: what all its processes hold for themselves and share, sampled.

    python -m benchmarks.bench_memory [--gigabytes 10] [--workers 4]

Makes a store by repeating one block, one question a picture, and trains by the real command line. Counted are
RssAnon and RssShmem of every process of the run, added up: the loader's buffers count once for each process that
has touched them. Mapped pages of the store do not count, as the system may drop them at any time. Writes
benchmarks/results/memory.json and removes the store.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loader_ways import FEATURE_DIM, REGIONS, make_store
from benchmarks.record import write_result
from store_schema.reader import RegionStore
from store_schema.tables import write_table

SAMPLE_SECONDS = 0.1
GIGABYTE = 1e9


def main() -> None:
    """Make the store, train, print the largest sums, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=10.0, help="size of the store (default 10)")
    parser.add_argument("--workers", type=int, default=4, help="processes that load (default 4)")
    parser.add_argument("--batch-size", type=int, help="questions a step (default: the configuration's)")
    parser.add_argument("--steps", type=int, default=300, help="training steps, at least (default 300)")
    parser.add_argument(
        "--folder", type=Path, help="where the store is made (default: a temporary folder's place)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        store = make_store(
            Path(folder) / "store", int(args.gigabytes * GIGABYTE / (REGIONS * FEATURE_DIM * 2)), "none"
        )
        questions = (args.batch_size or 128) * args.steps
        make_tables(Path(folder) / "tables", store, questions)
        command = [
            sys.executable, "-m", "pipeline.cli", "train", "vqa", "--config", "vqa-paper",
            "--tables", f"{folder}/tables", "--store", str(store.path), "--out", f"{folder}/run",
            "--num-workers", str(args.workers),
            "--device", "cpu", "--set", "training.epochs=1",
            *(["--batch-size", str(args.batch_size)] if args.batch_size else []),
        ]  # fmt: skip
        largest = sample(subprocess.Popen(command))
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    result = {
        "setting": {
            **{name: value for name, value in vars(args).items() if name != "folder"},
            "pictures": len(store),
        },
        "ratios": {"largest_to_3_gb": round(largest["sum"] / 3, 3)},
        "runs": [largest],
        "last_step": max(json.loads(line)["step"] for line in lines),
    }
    print(
        f"largest sum over {largest['processes']} processes: {largest['sum']:.2f} GB "
        f"(anonymous {largest['anonymous']:.2f}, shared {largest['shared']:.2f})"
    )
    print("written:", write_result("memory", result, ["numpy", "torch", "zarr"]))


def make_tables(folder: Path, store: RegionStore, num_questions: int) -> None:
    """Write one question a picture until there are enough, then a second one; a few to be held out."""
    ids = np.array(list(store.image_ids), object)
    rng = np.random.default_rng(0)
    colours, shapes = ["red", "green", "blue"], ["ball", "box", "cone"]
    write_table(
        folder,
        "images",
        [
            {"image_id": name, "path": f"{name}.png", "width": 640, "height": 480, "split": split_of(place)}
            for place, name in enumerate(ids)
        ],
    )
    places = np.arange(num_questions + num_questions // 100) % len(ids)
    write_table(
        folder,
        "questions",
        [
            {
                "question_id": str(number), "image_id": ids[place], "split": split_of(int(place)),
                "text": f"is the {colours[rng.integers(3)]} {shapes[rng.integers(3)]} left of it ?",
                "question_type": "where", "answer_type": "yes/no",
            }
            for number, place in enumerate(places)
        ],
    )  # fmt: skip
    write_table(
        folder,
        "answers",
        [
            {"question_id": str(number), "answer": ("yes", "no")[rng.integers(2)], "annotator": annotator}
            for number in range(len(places))
            for annotator in range(3)
        ],
    )


def split_of(place: int) -> str:
    """The split of a picture: one in a hundred is held out."""
    return "val" if place % 100 == 0 else "train"


def sample(run: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """Watch a run and all that it starts until it ends; give the largest sum met, in GB.

    Errors: `RuntimeError` where the run fails.
    """
    largest: dict[str, Any] = {"sum": 0.0, "samples": 0}
    while run.poll() is None:
        held = [held_by(pid) for pid in family(run.pid)]
        anonymous, shared = (sum(values) / GIGABYTE for values in zip(*held, strict=True)) if held else (0, 0)
        largest["samples"] += 1
        if anonymous + shared > largest["sum"]:
            largest |= {
                "sum": round(anonymous + shared, 3), "anonymous": round(anonymous, 3),
                "shared": round(shared, 3), "processes": len(held),
            }  # fmt: skip
        time.sleep(SAMPLE_SECONDS)
    if run.returncode:
        raise RuntimeError(f"the run failed with exit code {run.returncode}; what it said stands above")
    return largest


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    try:
        tasks = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(one for children in tasks for child in children.split() for one in family(int(child)))]


def held_by(pid: int) -> tuple[int, int]:
    """Bytes of anonymous and of shared memory that a process has in use; none when it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    values = dict(line.split(":", 1) for line in lines)
    anonymous, shared = (int(values.get(name, "0 kB").split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))
    return anonymous, shared


if __name__ == "__main__":
    main()
