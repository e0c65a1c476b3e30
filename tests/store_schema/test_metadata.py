import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from store_schema.errors import ConfigError, StoreDamagedError, StoreMismatchError
from store_schema.metadata import StoreMetadata, first_difference, software_versions
from tests.store_schema.tiny import ADAPTIVE, METADATA


def test_json_and_back_is_equal() -> None:
    assert StoreMetadata.from_json(json.loads(json.dumps(ADAPTIVE.to_json())), "here") == ADAPTIVE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_dim": -1}, "feature_dim must be a whole number from 0"),
        ({"max_regions": 65535}, "max_regions must be a whole number from 1 to 65534"),
        ({"min_regions": 5}, "min_regions must be a whole number from 0 to 4, got 5"),
        ({"block_size": True}, "block_size must be a whole number"),
        (
            {"box_source": "guess"},
            "box_source must be one of proposal, refined, regressed, given, grid, got 'guess'",
        ),
        ({"feature_dtype": "bfloat16"}, "feature_dtype must be one of"),
        ({"codec": "gzip"}, "codec must be one of none, zstd"),
        ({"detector": {"name": "x"}}, "detector needs a text under 'fingerprint'"),
        ({"selection": {"x": {1, 2}}}, "selection must hold plain JSON"),
        ({"selection": {"x": float("nan")}}, "selection must hold plain JSON"),
        ({"object_names": "dog"}, "object_names must be a sequence of texts"),
    ],
)
def test_values_outside_their_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        replace(METADATA, **change)


def test_metadata_without_versions_of_software_is_read() -> None:
    """Stores that were made before they were recorded."""
    content = METADATA.to_json()
    del content["software"]
    assert StoreMetadata.from_json(content, "here") == replace(METADATA, software={})


def test_metadata_records_the_software_that_made_the_features() -> None:
    assert {"python", "numpy", "pillow", "torch"} <= software_versions().keys()
    assert software_versions()["numpy"] == np.__version__


def test_an_older_schema_version_names_the_way_forward() -> None:
    with pytest.raises(StoreMismatchError, match=r"schema version 0, .* 'butd store upgrade'"):
        StoreMetadata.from_json(METADATA.to_json() | {"schema_version": 0}, "here")


def test_other_schema_version_is_refused_with_both_named() -> None:
    content = METADATA.to_json() | {"schema_version": 7}
    with pytest.raises(
        StoreMismatchError, match=r"here: the store has schema version 7, this code .* version 1"
    ):
        StoreMetadata.from_json(content, "here")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text", "no schema_version"),
        ({"schema_version": 1}, "missing or unknown keys"),
        (METADATA.to_json() | {"colour": 1}, r"unknown keys \['colour'\]"),
        (METADATA.to_json() | {"feature_dim": -1}, "feature_dim must be"),
        (METADATA.to_json() | {"object_names": 3}, "does not hold"),
    ],
)
def test_broken_metadata_is_damage_with_the_place_named(content: object, message: str) -> None:
    with pytest.raises(StoreDamagedError, match=f"here: .*{message}"):
        StoreMetadata.from_json(content, "here")


def test_features_fingerprint_ignores_how_features_lie_on_disk() -> None:
    moved = dict(METADATA.detector) | {"path": "elsewhere"}
    other = replace(
        METADATA, detector=moved, codec="zstd", feature_dtype="float32", code_version="9", block_size=8
    )
    assert other.features_fingerprint() == METADATA.features_fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"detector": {"name": "tiny", "fingerprint": "e" * 64}},
        {"box_source": "refined"},
        {"feature_dim": 7},
        {"object_names": ("cat", "dog", "tree")},
        {"attribute_names": ()},
    ],
)
def test_features_fingerprint_tells_what_changes_the_features(change: dict[str, Any]) -> None:
    assert replace(METADATA, **change).features_fingerprint() != METADATA.features_fingerprint()


def test_first_difference_names_field_and_both_values() -> None:
    other = replace(METADATA, selection={"score_thresh": 0.5}, code_version="9")
    assert first_difference(other, METADATA) == (
        "selection is {'score_thresh': 0.2} in the store and {'score_thresh': 0.5} now"
    )
    assert first_difference(replace(METADATA, code_version="9"), METADATA) is None
