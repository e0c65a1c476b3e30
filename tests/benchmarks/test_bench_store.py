"""The store benchmark runs, refuses a way that gives other bytes, and writes what the documentation reads from it."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench_store import Setting, check_equal, make_features, plot, run, table


def test_every_image_of_the_features_is_told_from_the_others() -> None:
    features = make_features(300)
    assert len({(image[0, 0].item(), image[-1, -1].item()) for image in features}) == 300


def test_a_way_that_gives_other_bytes_is_not_measured() -> None:
    features = np.arange(48, dtype=np.float16).reshape(12, 2, 2)
    check_equal({"right": lambda rows: features[rows]}, features, 4)
    with pytest.raises(ValueError, match="wrong gives other bytes at rows 0 to 4"):
        check_equal({"wrong": lambda rows: features[np.sort(rows)]}, features, 4)


@pytest.mark.slow
def test_a_tiny_run_fills_table_ratios_and_plot(tmp_path: Path) -> None:
    setting = Setting(
        num_images=32, batch_sizes=(8,), rounds=1, seconds=0.01, cold_gb=0.02, written_images=32
    )
    result = run(setting, tmp_path)
    rates = result["runs"]["images_per_second"][8]
    assert {
        "ours, views",
        "ours, read(out=)",
        "memcpy",
        "np.memmap[idx]",
        "HDF5",
        "zarrs, same shards",
    } <= set(rates)
    assert all(len(values) == 1 and values[0] > 0 for values in rates.values())
    assert all(value > 0 for value in result["ratios"][8].values())
    assert result["cold"]["ratio"] > 0
    assert set(result["writing"]["ratios"]) == {"zarr-python", "zarr-python, without checksums"}
    assert "ours, views / memcpy" in table(result)
    plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
