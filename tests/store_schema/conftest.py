"""Finished stores, written once; a test that damages one takes a copy."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
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


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 2 MB, where the machine lets us make one."""
    folder = Path(tempfile.mkdtemp())
    done = mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder))
    if done.returncode:
        folder.rmdir()
        pytest.skip(f"no small file system can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def mount(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount program here")
