"""`butd store import, export, coverage, diff` as a user types them: what they print, and their exit codes."""

import base64
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from store_schema.ledger import finished_blocks
from store_schema.reader import RegionStore
from store_schema.tables import read_table, write_table
from tests.pipeline.conftest import Butd, World
from tests.store_schema.formats import foreign
from tests.store_schema.tiny import contents


def butd(*arguments: str | Path) -> int:
    return main(["store", *map(str, arguments)])


def test_import_export_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = foreign.lxmert_tsv(tmp_path / "val.tsv", foreign.ADAPTIVE)
    store, out, again = tmp_path / "a.zarr", tmp_path / "out.tsv", tmp_path / "b.zarr"
    for source, target in ((path, store), (out, again)):
        assert butd("import", source, "--store", target, "--detector", "tests", "--dtype", "float32") == 0
        assert "4 pictures imported (0 before), 68 regions, 0 malformed" in capsys.readouterr().out
        if source is path:
            assert butd("export", store, out, "--format", "lxmert-tsv") == 0
            said = capsys.readouterr().out
            assert "4 pictures, 68 regions, beside it out_attributes_vocab.txt, out_objects_vocab.txt" in said
    assert butd("diff", store, again) == 0
    assert capsys.readouterr().out.endswith("equal\n")


def test_malformed_lines_are_counted_and_strict_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = foreign.caffe_tsv(tmp_path / "val.tsv", foreign.FIXED)
    path.write_bytes(path.read_bytes()[:-40])
    assert butd("import", path, "--store", tmp_path / "a.zarr") == 0
    said = capsys.readouterr().out
    assert "2 pictures imported (0 before), 12 regions, 1 malformed" in said
    assert "stored as float16: largest error" in said
    assert butd("problems", tmp_path / "a.zarr") == 0
    assert f"{path}, line 3" in capsys.readouterr().out
    assert butd("import", path, "--store", tmp_path / "b.zarr", "--strict") == 1
    assert "line 3: features has" in capsys.readouterr().err
    assert not (tmp_path / "b.zarr").exists()


def test_users_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], world: World
) -> None:
    store = tmp_path / "a.zarr"
    assert butd("import", tmp_path / "absent.tsv", "--store", store) == 2
    assert (
        butd("import", foreign.caffe_tsv(tmp_path / "a", foreign.FIXED), "--store", store, "--format", "tsv")
        == 2
    )
    assert butd("export", world.regions, tmp_path / "out", "--format", "cafe-tsv") == 2
    assert butd("export", world.regions, world.scenes, "--format", "cocobu") == 2
    assert butd("coverage", world.regions, "--tables", world.scenes, "--split", "dev") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5
    assert all(error.startswith("butd store: ") for error in errors)
    assert not store.exists()


def test_coverage_says_what_lacks_and_what_the_detector_saw(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert butd("coverage", world.regions, "--tables", world.scenes) == 0
    said = capsys.readouterr().out
    assert "train: 24 of 24 pictures with regions; 0 absent" in said
    assert "detector trained on 24 of them" in said
    assert "test: 8 of 8" in said
    run = world.runs / "detector"
    assert butd("coverage", world.regions, "--tables", world.scenes, "--detector", run, "--json") == 0
    by_run = json.loads(capsys.readouterr().out)
    assert by_run["splits"]["train"]["detector_trained_on"] == 24
    assert "detector trained on 0 of them" in said
    assert "every picture has its row" in said
    assert butd("coverage", world.other_regions, "--tables", world.scenes, "--json") == 1
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert not facts["ok"]
    assert len(facts["splits"]["train"]["absent"]) == 24
    assert facts["splits"]["val"]["absent"] == []
    assert butd("coverage", world.other_regions, "--tables", world.scenes, "--split", "val") == 0
    shutil.copytree(world.scenes, tmp_path / "tables", ignore=shutil.ignore_patterns("images"))
    images = read_table(tmp_path / "tables", "images")
    write_table(tmp_path / "tables", "images", images.assign(image_id="x" + images["image_id"]))
    assert butd("coverage", world.regions, "--tables", tmp_path / "tables") == 1
    assert "absent: xs5-000000" in capsys.readouterr().out


def test_diff_of_two_detectors(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert butd("diff", world.regions, world.other_regions, "--json") == 1
    facts = json.loads(capsys.readouterr().out)
    assert not facts["equal"]
    assert len(facts["only_in_a"]) == 32
    assert facts["num_common"] == facts["num_changed"] == 8
    assert facts["largest_feature_difference"] > facts["typical_feature_difference"] > 0
    assert "detector.fingerprint" in facts["metadata"]
    assert butd("diff", world.regions, world.regions) == 0


def test_show_draws_the_surest_regions(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.png"
    assert (
        butd("show", world.regions, "s5-000000", "--image", world.picture, "--out", out, "--regions", "2")
        == 0
    )
    assert out.is_file()
    assert "6 regions" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_import_goes_on_and_ends_the_same(start_butd: Butd, tmp_path: Path) -> None:
    """SIGKILL of a real import, once among its blocks at least; then the same command."""
    pictures = [foreign.regions(number, 40) for number in range(1, 401)]
    path = foreign.caffe_tsv(tmp_path / "val.tsv", pictures)
    options = ("--block-size", "4", "--detector", "tests")
    assert butd("import", path, "--store", tmp_path / "whole", *options) == 0
    stops = []
    for wanted in (0, 1, 30, 70):
        store = tmp_path / str(wanted)
        process = start_butd("store", "import", path, "--store", store, *options)
        while process.poll() is None and len(finished_blocks(store)) < wanted:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        stops.append(len(finished_blocks(store)))
        assert butd("import", path, "--store", store, *options) == 0
        assert contents(store) == contents(tmp_path / "whole")
        assert len(RegionStore.open(store)) == 400
    assert sum(0 < stop < 100 for stop in stops) >= 2, stops


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_memory_of_an_import_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Of 30 MB and of 300 MB of lines; measured by the system as the process's largest."""
    peaks = []
    zeros = base64.b64encode(bytes(36 * 2048 * 4)).decode()
    boxes = foreign.text(foreign.regions(1, 36).boxes)
    for count in (80, 800):
        path = tmp_path / f"{count}.tsv"
        with path.open("w") as file:
            for number in range(count):
                file.write(f"{number}\t640\t640\t36\t{boxes}\t{zeros}\n")
        program = (
            "import resource, sys; from pipeline.cli import main;"
            f"assert main(['store', 'import', {str(path)!r}, '--store', {str(tmp_path / f'{count}.zarr')!r},"
            " '--block-size', '40']) == 0;"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.splitlines()[-1]))
        shutil.rmtree(tmp_path / f"{count}.zarr")
        path.unlink()
    assert peaks[1] < 1.15 * peaks[0], peaks
