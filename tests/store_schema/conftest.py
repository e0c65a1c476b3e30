"""Finished stores, written once; a test that damages one takes a copy."""

import shutil
from pathlib import Path

import pytest

from tests.store_schema import tiny


@pytest.fixture(scope="session")
def fixed_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four slots, one chunk an image. Only for reading."""
    return tiny.write_store(tmp_path_factory.mktemp("stores") / "fixed")


@pytest.fixture(scope="session")
def adaptive_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Up to 25 regions, chunks of ten. Only for reading."""
    return tiny.write_store(tmp_path_factory.mktemp("stores") / "adaptive", tiny.ADAPTIVE)


@pytest.fixture
def fixed_copy(fixed_path: Path, tmp_path: Path) -> Path:
    """A store of its own, to be damaged."""
    return Path(shutil.copytree(fixed_path, tmp_path / "store"))
