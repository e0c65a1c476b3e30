"""A streamed JSON file gives what the json module reads whole."""

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.prepare import json_stream
from pipeline.prepare.json_stream import stream_records
from store_schema.errors import TableError

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def gathered(path: Path, chunk: int) -> list[tuple[str | None, Any]]:
    return list(stream_records(path, chunk=chunk))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.lists(VALUES) | st.dictionaries(st.text(), VALUES, max_size=5),
    chunk=st.integers(1, 50),
    indent=st.sampled_from([None, 2]),
)
def test_records_are_those_that_json_reads_whatever_the_chunk(
    tmp_path: Path, content: Any, chunk: int, indent: int | None
) -> None:
    path = tmp_path / "content.json"
    path.write_text(json.dumps(content, indent=indent), encoding="utf-8")
    if isinstance(content, list):
        expected: list[tuple[str | None, Any]] = [(None, value) for value in content]
    else:
        expected = [
            (key, element)
            for key, value in content.items()
            for element in (value if isinstance(value, list) else [value])
        ]
    assert gathered(path, chunk) == expected


@pytest.mark.parametrize("chunk", range(1, 9))
def test_a_number_may_be_cut_anywhere(tmp_path: Path, chunk: int) -> None:
    path = tmp_path / "content.json"
    path.write_text('[0.0, 12.5, 1e5, -1.5E-3, {"x": 2.0}]')
    assert gathered(path, chunk) == [(None, value) for value in (0.0, 12.5, 1e5, -1.5e-3, {"x": 2.0})]


def test_a_packed_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "content.json.gz"
    path.write_bytes(gzip.compress("\ufeff[1, 23]".encode()))
    assert gathered(path, 1) == [(None, 1), (None, 23)]


@pytest.mark.parametrize(
    "text", ["", "[", '[{"a": 1}, {"a": 2', "[1 2]", '{"a" 1}', "[1] more", "12", '{"a": [1]', "[1,]", "[tru"]
)
def test_what_is_no_whole_json_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "content.json"
    path.write_text(text)
    with pytest.raises(TableError, match=r"content\.json is no whole JSON: .* after \d+ records"):
        gathered(path, 4)


@pytest.mark.parametrize("content", [b'["\xff"]', gzip.compress(b"[1, 2, 3, 4]")[:-9]])
def test_wrong_bytes_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / ("content.json.gz" if content[:2] == b"\x1f\x8b" else "content.json")
    path.write_bytes(content)
    with pytest.raises(TableError, match=r"content\.json.* cannot be read as JSON"):
        gathered(path, 4)


def test_a_fault_near_the_beginning_does_not_read_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "LONGEST_RECORD", 1000)
    path = tmp_path / "content.json"
    path.write_text('[{"a": oops}' + " " * 100_000 + "]")
    tracemalloc.start()
    with pytest.raises(TableError, match="no whole JSON"):
        gathered(path, 100)
    assert tracemalloc.get_traced_memory()[1] < 50_000
    tracemalloc.stop()


def test_memory_is_that_of_a_few_records(tmp_path: Path) -> None:
    path = tmp_path / "content.json"
    with path.open("w") as file:
        file.write('{"first": [')
        file.write(",".join(json.dumps({"n": n, "text": "x" * 1000}) for n in range(20_000)))
        file.write("]}")
    tracemalloc.start()
    assert sum(record["n"] for _, record in stream_records(path)) == sum(range(20_000))
    assert tracemalloc.get_traced_memory()[1] < 8 * json_stream.CHUNK < path.stat().st_size
    tracemalloc.stop()
