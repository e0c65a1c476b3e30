"""The loader benchmark runs, and writes what the documentation reads from it."""

from pathlib import Path

import pytest

from benchmarks.bench_loader import Setting, run
from benchmarks.loader_report import answers, median_ratio, plot, table


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    """A round that a neighbour disturbs halves both, and changes nothing."""
    assert median_ratio([10.0, 5.0, 12.0], [5.0, 2.5, 4.0]) == 2.0


@pytest.mark.slow
def test_a_tiny_run_fills_table_ratios_and_plot(tmp_path: Path) -> None:
    setting = Setting(num_images=64, batch_sizes=(8,), workers=(0, 1), rounds=1, num_steps=2, cold_gb=0.02)
    result = run(setting, tmp_path)
    assert {(entry["way"], entry["workers"]) for entry in result["runs"]} >= {
        ("memcpy, one place", 0), ("memcpy, new places", 0), ("ours", 0), ("ours", 1), ("ours, zstd store", 1),
        ("DataLoader, npz files", 1),
    }  # fmt: skip
    assert all(value > 0 for name, value in result["ratios"][8].items() if "over" not in name)
    assert set(result["cold"]["ratios_to_preadv"]) == {
        "preadv, 8 threads",
        "ours, 0 workers",
        "ours, 1 workers",
    }
    assert "workers_0_to_memcpy" in table(result)
    assert "the fast store, batch 8, a step of 20 ms with workers 0: " in answers(result)
    plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
