"""Writes a benchmark's result beside where, with what and how often it was measured."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def write_result(name: str, content: Mapping[str, Any], packages: list[str]) -> Path:
    """Write benchmarks/results/<name>.json: the content (with "ratios" and "runs"), machine and versions."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    versions = {"python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in packages}
    record = {**content, "machine": machine(), "versions": versions}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def machine() -> dict[str, Any]:
    """What of a machine makes numbers differ: processor, cores, memory, system, and how busy it was."""
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": cpus[0].split(":", 1)[1].strip() if cpus else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.release(),
        "load_average_at_end": round(os.getloadavg()[0], 2),
    }
