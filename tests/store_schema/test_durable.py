import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from store_schema.durable import NewFile, replace_file, replace_files, seal, unseal
from store_schema.errors import StoreDamagedError, StoreError


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old and longer")
    replace_files([NewFile(tmp_path / name, name.encode() * 3, name) for name in ("a", "b")])
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == {
        "a": b"aaa",
        "b": b"bbb",
    }


def test_when_one_cannot_be_written_none_has_changed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    files = [NewFile(tmp_path / "a", b"new", "first"), NewFile(tmp_path / "nowhere" / "b", b"new", "second")]
    with pytest.raises(StoreError, match=r"second: cannot write the 3 bytes of .*nowhere/b: No such file"):
        replace_files(files)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == {"a": b"old"}


def test_an_interrupt_leaves_no_partial_file(tmp_path: Path) -> None:
    def files() -> Iterator[NewFile]:
        yield NewFile(tmp_path / "a", b"new", "first")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_files(files())
    assert os.listdir(tmp_path) == []


def test_sealed_content_comes_back(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", seal({"b": [1, "ä"], "a": None}), "content")
    assert unseal(tmp_path / "a", "content", "help") == {"b": [1, "ä"], "a": None}


def test_what_cannot_be_unsealed_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(StoreDamagedError, match=r"content: .*/a cannot be read \(.*No such file.*; help"):
        unseal(tmp_path / "a", "content", "help")
    (tmp_path / "a").write_bytes(seal({"b": 1}).replace(b'"b":1', b'"b":2'))
    with pytest.raises(StoreDamagedError, match=r"content: the bytes of .*/a have changed since .*; help"):
        unseal(tmp_path / "a", "content", "help")
