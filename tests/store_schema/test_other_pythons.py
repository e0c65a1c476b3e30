"""The oldest and the newest Python, with the zarr that each gets, write the same store and read each other's."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.store_schema.tiny import contents

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("zarr", "numpy", "numcodecs", "google-crc32c")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_oldest_and_the_newest_python_write_the_same_store_and_read_each_others(tmp_path: Path) -> None:
    other = other_interpreter()
    python = environment(other, tmp_path)
    written = {
        name: run(path, "write", tmp_path / name)
        for name, path in (("ours", sys.executable), ("theirs", python))
    }
    versions = [written[name]["versions"] for name in ("ours", "theirs")]
    print(f"compared: {versions}")
    assert versions[0]["python"].split(".")[:2] != versions[1]["python"].split(".")[:2]
    for store in written["ours"]["stores"]:
        ours, theirs = contents(tmp_path / "ours" / store), contents(tmp_path / "theirs" / store)
        if store == "zstd":  # the compressor's version is not ours to choose: the same values
            assert ours.keys() == theirs.keys()
            for one in (written["ours"], written["theirs"]):
                del one["stores"][store]["store"]
        else:
            assert ours == theirs
    assert written["ours"]["stores"] == written["theirs"]["stores"]
    for reader, folder in ((python, "ours"), (sys.executable, "theirs")):
        read = run(reader, "read", tmp_path / folder)["stores"]
        del read["zstd"]["store"]
        assert read == written[folder]["stores"]


def other_interpreter() -> str:
    """The Python farthest from the running one of those that we support."""
    own = sys.version_info[1]
    for minor in sorted((11, 12, 13), key=lambda minor: -abs(minor - own)):
        if minor != own and (found := installed(minor)) is not None:
            return found
    pytest.skip("no other Python of 3.11 to 3.13 is installed here")


def installed(minor: int) -> str | None:
    """A working interpreter on the path or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python3.{minor}"), *map(str, sorted(pyenv.glob(f"3.{minor}.*/bin/python")))]
    for candidate in candidates:
        if candidate is not None:
            code = "import sys; print(sys.version_info[1])"
            done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
            if done.returncode == 0 and done.stdout.strip() == str(minor):
                return candidate
    return None


def environment(interpreter: str, folder: Path) -> str:
    """A virtual environment of that Python with the locked versions of what a store needs."""
    lock = (ROOT / "requirements" / "requirements.lock").read_text()
    pinned = re.findall(r"^([a-zA-Z0-9._-]+==[^\\\n]*)", lock, re.MULTILINE)
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(pinned) + "\n")
    subprocess.run([interpreter, "-m", "venv", str(folder / "venv")], check=True, capture_output=True)
    python = str(folder / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", str(constraints), *NEEDED]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"its libraries cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return python


def run(python: str, action: str, folder: Path) -> Any:
    command = [python, "-m", "tests.store_schema.other_python", action, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
