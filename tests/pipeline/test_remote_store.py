"""Commands that read a store take a URL in place of a folder, and never show what may be secret in it."""

import json
from pathlib import Path

import pytest

from pipeline.cli import main
from tests.store_schema.range_server import serve
from tests.store_schema.tiny import METADATA, write_store


def output(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> str:
    assert main([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_info_show_problems_and_verify_say_of_a_url_what_they_say_of_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_store(tmp_path / "store", METADATA)
    with serve(tmp_path) as served:
        url = f"{served.url.replace('//', '//reader:s3cr3t@')}/store?key=s3cr3t"
        for action, *rest in (["info"], ["info", "--json"], ["show", "picture:1"], ["problems"]):
            assert output(capsys, "store", action, url, *rest) == output(capsys, "store", action, path, *rest)
        for depth in ([], ["--full"]):
            report = json.loads(output(capsys, "store", "verify", url, "--json", *depth))
            assert report == json.loads(output(capsys, "store", "verify", path, "--json", *depth))
            assert report["ok"]
            assert "s3cr3t" not in output(capsys, "store", "verify", url, *depth)


def test_verify_finds_in_a_remote_store_what_is_missing_or_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_store(tmp_path / "store", METADATA)
    shard = path / "features" / "c.0.0.0"
    data = bytearray(shard.read_bytes())
    data[5] ^= 1
    shard.write_bytes(data)
    (path / "boxes" / "c.1.0.0").unlink()
    with serve(tmp_path) as served:
        report = output(capsys, "store", "verify", f"{served.url}/store", "--full", code=1)
    assert "have changed" in report
    assert "boxes/c.1.0.0 is missing" in report


def test_a_server_that_fails_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path / "store", METADATA)
    with serve(tmp_path) as served:
        served.faults["zarr.json"] = 403
        url = f"{served.url}/store?key=s3cr3t"
        said = output(capsys, "store", "info", url, code=1)
    assert said.count("\n") == 1
    assert f"{served.url}/store/zarr.json: the server refuses access (403)" in said
    assert "s3cr3t" not in said


def test_a_url_of_another_kind_is_refused_without_being_shown(capsys: pytest.CaptureFixture[str]) -> None:
    said = output(capsys, "store", "info", "ftp://reader:s3cr3t@host/store", code=2)
    assert "a store's URL starts with http://, https://, s3://" in said
    assert "s3cr3t" not in said
