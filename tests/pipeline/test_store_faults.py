"""Every kind of damage to a store, as a user sees it: one line that names block and pictures, exit code 1 or 2."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cli import main
from store_schema.ledger import record_path
from store_schema.reader import RegionStore
from tests.store_schema.tiny import BAD_ID, IDS, METADATA, contents, write_store

BLOCK = "pictures 'picture:4' to 'picture:7'"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store")


def butd(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, list[str], list[str]]:
    """Exit code, lines of the output, lines of the errors."""
    code = main(["store", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def truncated(store: Path) -> None:
    file = store / "features" / "c.1.0.0"
    file.write_bytes(file.read_bytes()[:-1])


def missing(store: Path) -> None:
    (store / "features" / "c.1.0.0").unlink()


def zero_filled(store: Path) -> None:
    file = store / "features" / "c.1.0.0"
    file.write_bytes(bytes(file.stat().st_size))


def zero_filled_boxes(store: Path) -> None:
    file = store / "boxes" / "c.1.0.0"
    file.write_bytes(bytes(file.stat().st_size))


def bit_flipped(store: Path) -> None:
    file = store / "features" / "c.1.0.0"
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)


def a_directory_in_its_place(store: Path) -> None:
    missing(store)
    (store / "features" / "c.1.0.0").mkdir()


def broken_record(store: Path) -> None:
    record_path(store, 1).write_bytes(b"{")


def record_with_a_flipped_bit(store: Path) -> None:
    data = bytearray(record_path(store, 1).read_bytes())
    data[40] ^= 1
    record_path(store, 1).write_bytes(data)


def block_of_another_detector(store: Path) -> None:
    other = write_store(store.with_name("other"), replace(METADATA, detector=OTHER))
    shutil.copy(record_path(other, 1), record_path(store, 1))


OTHER = {"name": "other", "fingerprint": "e" * 64}


def broken_root(store: Path) -> None:
    (store / "zarr.json").write_text("{")


def broken_array(store: Path) -> None:
    (store / "boxes" / "zarr.json").write_text('{"zarr_format": 2}')


DAMAGES: dict[Callable[[Path], None], tuple[str, ...]] = {
    truncated: ("block 1, features: ", "features/c.1.0.0 has ", " bytes, ", "were written", BLOCK),
    missing: ("block 1, features: features/c.1.0.0 is missing", BLOCK),
    zero_filled: ("block 1, features: c.1.0.0: the checksum of its index does not fit", BLOCK),
    zero_filled_boxes: ("block 1, boxes: the bytes of boxes/c.1.0.0 have changed", BLOCK),
    bit_flipped: ("block 1, features, picture 'picture:6': the bytes of row 6 have changed",),
    a_directory_in_its_place: ("block 1, features: ", BLOCK),
    broken_record: ("block 1, commit record: ", "cannot be read", "butd store repair", BLOCK),
    record_with_a_flipped_bit: ("block 1, commit record: ", "butd store repair", BLOCK),
    block_of_another_detector: ("block 1", f"made by detector {'e' * 64}", f"is of {'f' * 64}", BLOCK),
    broken_root: ("zarr.json is not readable JSON", "restore the file from a copy"),
    broken_array: ("array boxes: ", "zarr.json has zarr_format 2", "asks for 3"),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_verify_names_each_damage_in_one_line(
    store: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(store)
    code, output, errors = butd(capsys, "verify", store, "--full")
    assert (code, errors) == (1, [])
    assert len(output) == 2, output
    for part in DAMAGES[damage]:
        assert part in output[0]
    assert output[1].startswith(f"{store}: damaged, 1 findings; ")
    code, output, _ = butd(capsys, "verify", store, "--full", "--json")
    assert (code, json.loads(output[0])["ok"]) == (1, False)


@pytest.mark.parametrize(
    "damage",
    [d for d in DAMAGES if d not in (broken_root, a_directory_in_its_place)],
    ids=lambda damage: damage.__name__,
)
def test_repair_and_the_job_again_give_the_store_as_it_was(
    store: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(store)
    damage(store)
    planned = butd(capsys, "repair", store, "--dry-run")
    code, output, errors = butd(capsys, "repair", store)
    assert (code, errors, planned[1][:-1]) == (0, [], output[:-1])
    dropped = "0 blocks with 0 pictures" if damage is broken_array else "1 blocks with 4 pictures"
    assert output[-1].startswith(f"{store}: {dropped} dropped")
    assert planned[1][-1] == f"{store}: {dropped} would be dropped"
    assert butd(capsys, "verify", store, "--full")[0] == 0
    assert contents(write_store(store)) == before
    assert butd(capsys, "repair", store)[1] == [f"{store}: whole, nothing to repair"]


def test_a_schema_from_the_future_is_refused_by_every_action(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = store / "zarr.json"
    root.write_text(root.read_text().replace('"schema_version": 1', '"schema_version": 9'))
    for action in (["verify"], ["repair"], ["info"], ["upgrade"], ["problems"], ["copy"]):
        more = [store.with_name("copy")] if action == ["copy"] else []
        code, output, errors = butd(capsys, *action, store, *more)
        assert (code, output, len(errors)) == (2, [], 1), action
        assert "schema version 9" in errors[0]
        assert "newer butd" in errors[0]


def test_upgrade_of_a_store_of_today_has_nothing_to_do(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(store)
    expected = [f"{store}: already at schema version 1, nothing to do"]
    assert butd(capsys, "upgrade", store) == (0, expected, [])
    assert contents(store) == before


def test_copy_says_what_is_written_and_what_is_shared(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = store.with_name("ids.txt")
    ids.write_text("\n".join([*IDS[:4], BAD_ID, "", "ein B\u00e4r\r"]), encoding="utf-8")
    copy = store.with_name("copy")
    arguments: list[str | Path] = [
        "copy",
        store,
        copy,
        "--ids",
        ids,
        "--where",
        "quarantined or num_regions >= 0",
    ]
    planned = butd(capsys, *arguments, "--dry-run")
    assert not copy.exists()
    code, output, errors = butd(capsys, *arguments)
    assert (code, errors) == (0, [])
    assert output[0].startswith(f"{copy}: 5 pictures and 1 quarantined; 1 blocks shared, 1 written (")
    assert planned[1] == [output[0].replace("1 written (", "1 to write (")]
    assert list(RegionStore.open(copy).image_ids) == [*IDS[:4], "ein B\u00e4r"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("copy", "STORE", "STORE"), ("is there already",)),
        (("copy", "none", "COPY"), ("no region store at none",)),
        (
            ("copy", "STORE", "COPY", "--where", "widht > 3"),
            ("--where 'widht > 3'", "no column 'widht'", "width"),
        ),
        (("copy", "STORE", "COPY", "--ids", "none.txt"), ("--ids none.txt", "No such file")),
        (("copy", "STORE", "COPY", "--exclude", "EMPTY"), ("--exclude", "names no picture")),
        (
            ("copy", "STORE", "COPY", "--block-size", "0"),
            ("block_size must be a whole number from 1", "got 0"),
        ),
        (("repair", "none"), ("no region store at none",)),
        (("upgrade", "none"), ("no region store at none",)),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2(
    store: Path, arguments: tuple[str, ...], parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    store.with_name("empty").write_text("\n")
    places = {"STORE": store, "COPY": store.with_name("copy"), "EMPTY": store.with_name("empty")}
    code, output, errors = butd(capsys, *(places.get(word, word) for word in arguments))
    assert (code, output, len(errors)) == (2, [], 1), errors
    for part in parts:
        assert part in errors[0]
    assert not store.with_name("copy").exists()
