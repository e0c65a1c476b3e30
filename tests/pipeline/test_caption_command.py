"""`butd caption`: how captions are written, and files for COCO's server."""

import json
from pathlib import Path

import pytest

from pipeline.cli import main
from tests.pipeline.conftest import World


def _caption(world: World, *arguments: str | Path) -> int:
    return main(["caption", str(world.caption), "--store", str(world.regions), *map(str, arguments)])


def test_n_best_are_printed_best_first_with_their_scores(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = ("--ids", "s5-000000", "s5-000001")
    assert (
        _caption(world, *ids, "--beam-size", "5", "--num-captions", "3", "--length-penalty", "avg", "--json")
        == 0
    )
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image_id"] for row in rows] == ["s5-000000"] * 3 + ["s5-000001"] * 3
    for picture in (rows[:3], rows[3:]):
        scores = [row["score"] for row in picture]
        assert scores == sorted(scores, reverse=True)
        assert all(row["score"] > row["log_prob"] for row in picture)  # the mean is above the sum
        assert len({row["caption"] for row in picture}) == 3


def test_samples_follow_the_seed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = []
    for seed in (1, 1, 2):
        arguments = (
            "--ids",
            "s5-000000",
            "--sample",
            "--num-captions",
            "4",
            "--top-k",
            "20",
            "--seed",
            str(seed),
        )
        assert _caption(world, *arguments) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_results_file_is_complete_or_not_written(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    asked = ("--results", file, "--tables", world.scenes, "--split", "test")
    ids = sorted(row for row in _split_ids(world, "test"))
    assert _caption(world, "--ids", *ids[1:], *asked) == 2
    assert "lack 1 pictures" in capsys.readouterr().err
    assert _caption(world, "--ids", *ids, _split_ids(world, "train")[0], *asked) == 2
    assert "that are not of it" in capsys.readouterr().err
    assert not file.exists()
    assert (
        _caption(world, *asked) == 0
    )  # of the store, which has the other splits' pictures, too, the split's
    assert {row["image_id"] for row in json.loads(file.read_text())} == set(ids)


def _split_ids(world: World, split: str) -> list[str]:
    from store_schema.tables import read_table

    images = read_table(world.scenes, "images")
    return list(images.loc[images["split"] == split, "image_id"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sample", "--beam-size", "3"), "--beam-size has no effect with --sample"),
        (("--results", "r.json"), "--results needs --tables and --split"),
        (("--split", "val"), "belong to --results"),
        (("--top-k", "5"), "no effect on beam search"),
        (("--sample", "--length-penalty", "avg"), "no effect on sampling"),
        (("--length-penalty", "wu"), "wu_ and a number"),
    ],
)
def test_options_that_do_not_go_together_are_named(
    world: World, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _caption(world, *arguments) == 2
    assert message in capsys.readouterr().err
