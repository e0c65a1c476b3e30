"""The way from one schema version to the next, tried with steps to versions that do not exist."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from store_schema.errors import StoreDamagedError, StoreLockedError, StoreMismatchError, StoreNotFoundError
from store_schema.layout import SCHEMA_VERSION
from store_schema.ledger import ledger_folder
from store_schema.reader import RegionStore
from store_schema.upgrade import STEPS, upgrade
from store_schema.writer import StoreWriter
from tests.store_schema.tiny import METADATA, contents

Json = Mapping[str, Any]


def to_two(path: Path, metadata: Json) -> Json:
    (path / "features" / "note").write_text("two")
    return {**metadata, "colour": "blue"}


def to_three(path: Path, metadata: Json) -> Json:
    assert (path / "features" / "note").read_text() == "two"
    return {**metadata, "colour": metadata["colour"] + "ish"}


def test_a_store_of_this_version_is_left_as_it_is(fixed_copy: Path) -> None:
    before = contents(fixed_copy)
    assert upgrade(fixed_copy) == SCHEMA_VERSION
    assert contents(fixed_copy) == before


def test_every_version_before_this_one_has_a_step() -> None:
    assert sorted(STEPS) == list(range(1, SCHEMA_VERSION))


def test_steps_are_taken_in_order_and_the_version_is_raised(fixed_copy: Path) -> None:
    assert upgrade(fixed_copy, {1: to_two, 2: to_three}, 3) == 1
    metadata = json.loads((fixed_copy / "zarr.json").read_text())["attributes"]["butd_region_store"]
    assert metadata == {**METADATA.to_json(), "schema_version": 3, "colour": "blueish"}
    with pytest.raises(
        StoreMismatchError, match=r"schema version 3, this code .* reads version 1; use a newer butd"
    ):
        RegionStore.open(fixed_copy)


def test_a_step_that_fails_leaves_the_version_before_it_and_is_taken_again(fixed_copy: Path) -> None:
    def fails(path: Path, metadata: Json) -> Json:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upgrade(fixed_copy, {1: to_two, 2: fails}, 3)
    assert upgrade(fixed_copy, {1: fails, 2: to_three}, 3) == 2


def test_versions_from_which_no_step_leads_on_are_refused_and_left_alone(fixed_copy: Path) -> None:
    root = fixed_copy / "zarr.json"
    text = root.read_text()
    for version, remedy in ((7, "newer"), (0, "different")):
        root.write_text(text.replace('"schema_version": 1', f'"schema_version": {version}'))
        before = contents(fixed_copy)
        with pytest.raises(
            StoreMismatchError, match=rf"schema version {version}, .* to version 1; use a {remedy}"
        ):
            upgrade(fixed_copy)
        assert contents(fixed_copy) == before


def test_what_is_no_whole_store_is_refused(fixed_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no such folder"):
        upgrade(tmp_path / "nowhere")
    with (
        StoreWriter.open(fixed_copy, METADATA),
        pytest.raises(StoreLockedError, match="being written by process"),
    ):
        upgrade(fixed_copy, {1: to_two}, 2)
    shutil.rmtree(ledger_folder(fixed_copy))
    with pytest.raises(StoreMismatchError, match="no records of finished blocks"):
        upgrade(fixed_copy, {1: to_two}, 2)
    root = fixed_copy / "zarr.json"
    root.write_text(root.read_text().replace('"schema_version": 1', '"schema_version": "1"'))
    with pytest.raises(StoreDamagedError, match="no schema_version"):
        upgrade(fixed_copy)
