"""Ratios, table, answers and plot of the loading benchmark, from what it measured."""

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cold_pages import PREADV_THREADS
from benchmarks.loader_ways import FEATURE_DIM, REGIONS
from stage2_models.loader import DEFAULT_WORKERS

STEP_MS = 20.0
WAYS = {
    "ours": "the fast store",
    "ours, zstd store": "a compressed store",
    "DataLoader, per sample": "a stock DataLoader on the fast store",
    "DataLoader, npz files": "a stock DataLoader on a .npz a picture",
}


def median_ratio(values: Sequence[float], reference: Sequence[float]) -> float:
    """Median over the rounds of each round's own ratio."""
    return round(statistics.median(a / b for a, b in zip(values, reference, strict=True)), 3)


def ratios(runs: list[dict[str, Any]], control: Sequence[float], batch_size: int) -> dict[str, float]:
    """What is claimed, as ours to each rival; "over_..." is the share that loading adds to a step."""
    entries = {(entry["way"], entry["workers"]): entry for entry in runs if entry["batch_size"] == batch_size}

    def rate(way: str, workers: int, rival: str, rival_workers: int) -> float:
        name = "images_per_second"
        return median_ratio(entries[way, workers][name], entries[rival, rival_workers][name])

    result = {
        "workers_0_to_memcpy": rate("ours", 0, "memcpy, one place", 0),
        "workers_0_to_memcpy_new_places": rate("ours", 0, "memcpy, new places", 0),
    }
    for rival in ("per sample", "whole batch", "npz files"):
        name = rival.replace(" ", "_")
        result[f"workers_1_to_dataloader_1_{name}"] = rate("ours", 1, f"DataLoader, {rival}", 1)
        if ("ours", DEFAULT_WORKERS) in entries:
            result[f"defaults_to_dataloader_1_{name}"] = rate(
                "ours", DEFAULT_WORKERS, f"DataLoader, {rival}", 1
            )
    for way, workers in entries:
        if way == "ours" and workers:
            result[f"workers_{workers}_to_workers_0"] = rate("ours", workers, "ours", 0)
        if way == "ours" and workers:
            over = statistics.median(entries[way, workers]["over_sleeping_step_ms"])
            result[f"over_sleeping_step_workers_{workers}"] = round(over / STEP_MS, 4)
            if workers == DEFAULT_WORKERS:
                result["over_sleeping_step_with_defaults"] = result[f"over_sleeping_step_workers_{workers}"]
    result["over_sleeping_step_beside_a_copying_process"] = round(statistics.median(control) / STEP_MS, 4)
    return result


def table(result: dict[str, Any]) -> str:
    """The medians as text, sorted by speed."""
    lines = [
        f"{'way':<26}{'workers':>8}{'batch':>7}{'images/s':>12}{'+ sleeping':>12}{'+ Python':>11}  (ms a step)"
    ]
    rows = [(entry, medians(entry)) for entry in result["runs"]]
    for entry, middle in sorted(rows, key=lambda row: (row[0]["batch_size"], -row[1]["images_per_second"])):
        lines.append(
            f"{entry['way']:<26}{entry['workers']:>8}{entry['batch_size']:>7}{middle['images_per_second']:>12,.0f}"
            f"{middle['over_sleeping_step_ms']:>12.2f}{middle['over_python_step_ms']:>11.2f}"
        )
    if not any("pinned" in entry["way"] for entry in result["runs"]):
        lines.append("no rows of pinned memory: torch finds no CUDA device here")
    for batch_size, values in result["ratios"].items():
        lines += [f"batch {batch_size}: {name} = {value}" for name, value in values.items()]
    for name, value in result.get("cold", {}).get("ratios_to_preadv", {}).items():
        lines.append(f"cold pages, {name}: {value} of preadv on {PREADV_THREADS} threads")
    return "\n".join(lines)


def medians(entry: dict[str, Any]) -> dict[str, float]:
    """The median over the rounds of each quantity."""
    return {name: statistics.median(value) for name, value in entry.items() if isinstance(value, list)}


def answers(result: dict[str, Any]) -> str:
    """What each further worker brings to a step of 20 ms that leaves the cores free, in words."""
    lines = []
    for way, meaning in WAYS.items():
        for batch_size in result["setting"]["batch_sizes"]:
            steps = {
                entry["workers"]: STEP_MS + medians(entry)["over_sleeping_step_ms"]
                for entry in result["runs"]
                if (entry["way"], entry["batch_size"]) == (way, batch_size)
            }
            told = [f"{workers}: {step:.1f} ms" for workers, step in steps.items()]
            gains = [
                f"from {fewer} to {more} {1 - steps[more] / steps[fewer]:+.0%}"
                for fewer, more in zip(list(steps), list(steps)[1:], strict=False)
            ]
            lines.append(
                f"{meaning}, batch {batch_size}, a step of 20 ms with workers {', '.join(told)}"
                + (f"; shorter {', '.join(gains)}" if gains else "")
            )
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Images a second and what a 20 ms step takes longer, over the number of workers, a column a batch size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    panels = {"images_per_second": "images / s", "over_sleeping_step_ms": "ms added to a sleeping 20 ms step"}
    sizes = sorted({entry["batch_size"] for entry in result["runs"]})
    figure, axes = pyplot.subplots(
        len(panels), len(sizes), figsize=(4.2 * len(sizes), 7), sharex=True, sharey="row", squeeze=False
    )
    names = sorted({entry["way"] for entry in result["runs"]}, key=lambda name: ("memcpy" not in name, name))
    colours = {name: f"C{number}" for number, name in enumerate(names)}
    for row, (quantity, label) in zip(axes, panels.items(), strict=True):
        for axis, batch_size in zip(row, sizes, strict=True):
            for name in names:
                entries = [e for e in result["runs"] if (e["way"], e["batch_size"]) == (name, batch_size)]
                workers = [entry["workers"] for entry in entries]
                middle = [max(statistics.median(entry[quantity]), 0.05) for entry in entries]
                if "memcpy" in name:
                    axis.axhline(middle[0], color=colours[name], linestyle=":", label=name)
                else:
                    axis.plot(workers, middle, "o-", color=colours[name], label=name)
            axis.set_yscale("log")
            axis.set_xticks(sorted({entry["workers"] for entry in result["runs"]}))
            axis.grid(alpha=0.3)
            axis.set_title(f"batch {batch_size}")
        row[0].set_ylabel(label)
    for axis in axes[-1]:
        axis.set_xlabel("workers")
    axes[0][-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.suptitle(
        f"{REGIONS} x {FEATURE_DIM} float16 a picture, warm pages, {len(os.sched_getaffinity(0))} cores"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
