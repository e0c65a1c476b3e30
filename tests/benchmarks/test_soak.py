"""The soak, small: a dozen kills, one of each kind, and the comparison at its end."""

from pathlib import Path

import pytest
import torch

from benchmarks.soak import hash_values, plan, soak, table


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_killed_in_every_phase_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    result = soak(tmp_path, 12, seed=1)
    assert result["equal"], result["sha256"]
    assert result["kills"] == len(result["places"]) == 12
    assert set(result["phases"]) == {
        "imports, run", "beginning, run", "step, run", "evaluation, run", "saving, run", "worker's start, run",
        "step, worker", "evaluation, worker", "saving, worker", "worker's start, worker",
    }  # fmt: skip
    assert result["sessions_that_trained"] > 4
    assert table(result).endswith("undisturbed run: yes")


def test_two_hundred_kills_have_ten_in_each_phase() -> None:
    for phase in ("imports", "beginning", "step", "evaluation", "saving", "worker's start"):
        assert sum(fault["phase"] == phase for fault in plan(200, seed=0)) >= 10
    assert list(plan(200, seed=0)) != list(plan(200, seed=1))


def test_hashes_tell_values_types_and_order_apart() -> None:
    state = {"a": torch.tensor([1.0, 2.0]), "b": [1, None, "x"]}
    assert hash_values(state) == hash_values({"a": torch.tensor([1.0, 2.0]), "b": (1, None, "x")})
    for other in (
        {"a": torch.tensor([1.0, 2.5]), "b": [1, None, "x"]},
        {"a": torch.tensor([1.0, 2.0], dtype=torch.float64), "b": [1, None, "x"]},
        {"a": torch.tensor([1.0, 2.0]), "b": [1, "x", None]},
    ):
        assert hash_values(state) != hash_values(other)
