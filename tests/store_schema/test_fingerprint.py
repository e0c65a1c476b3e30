import hashlib
from pathlib import Path

import pytest

from store_schema.fingerprint import canonical_json, file_sha256, fingerprint


def test_order_of_keys_and_tuples_do_not_change_a_fingerprint() -> None:
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint({"b": [1, 2], "a": 1})


def test_fingerprint_is_the_sha256_of_canonical_json() -> None:
    expected = hashlib.sha256(b'{"a":[1,2.5,null],"\\u00e4":"x"}').hexdigest()
    assert fingerprint({"ä": "x", "a": [1, 2.5, None]}) == expected


@pytest.mark.parametrize("other", [{"a": 2}, {"a": "1"}, {"b": 1}, [1], {"a": 1.5}])
def test_other_values_have_other_fingerprints(other: object) -> None:
    assert fingerprint(other) != fingerprint({"a": 1})


def test_nan_has_no_canonical_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_file_sha256_is_of_all_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()
