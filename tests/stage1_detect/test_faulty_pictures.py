"""One job over all that a folder of pictures may hold: regions, or one line with the reason, and never a stop."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from stage1_detect.config import SelectionConfig
from stage1_detect.jobs import JobConfig, detect_to_store
from stage1_detect.sources import find_images
from stage1_detect.spec import ExtractorSpec
from store_schema.reader import RegionStore
from store_schema.verify import verify

FAULTS = {
    "truncated": "truncated",
    "empty": "the file is empty (0 bytes)",
    "text": "not a picture in any format that is read here",
    "bomb": "30000 x 30000 pixels are over the limit",
    "loop": "Too many levels of symbolic links",
    "gone": "No such file or directory",
}
NOTES = {"turned": ("exif_turned",), "moving": ("first_frame",)}
SIZES = {"one": (1, 1), "long": (3, 4000), "turned": (64, 96)}
"""Width and height in the store; EXIF says that this one, 96 wide in its file, lies on its side."""
ODD_NAMES = {
    b"with spaces.png": "with spaces",
    b"new\nline.png": "new\nline",
    b"caf\xe9.png": "caf\\xe9",
    "Bär.png".encode(): "Bär",
}


def black_png_of_30000() -> bytes:
    """One chunk of zeros, packed: 110 KB."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 30_000 // 8)
    data = b"".join(packer.compress(row) for _ in range(30_000)) + packer.flush()
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)),
        (b"IDAT", data),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )


@pytest.fixture
def folder(tmp_path: Path, draw_pictures: Callable[..., list[Path]]) -> Path:
    folder = tmp_path / "pictures"
    (good,) = draw_pictures(folder, 1, ((96, 64),))
    picture = Image.open(good)
    picture.save(folder / "truncated.jpg")
    whole = (folder / "truncated.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no picture")
    picture.save(folder / "really_png.jpg", format="PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "turned.jpg", exif=exif)
    picture.save(folder / "moving.gif", save_all=True, append_images=[picture.rotate(90)])
    for name in ("one", "long"):
        picture.resize(SIZES[name]).save(folder / f"{name}.png")
    (folder / "bomb.png").write_bytes(black_png_of_30000())
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "up").symlink_to(folder)
    for odd in ODD_NAMES:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + odd)).write_bytes(good.read_bytes())
    (folder / "gone.png").write_bytes(good.read_bytes())
    return folder


@pytest.mark.parametrize("scheduler", ["sync", pytest.param("processes", marks=pytest.mark.slow)])
def test_one_job_over_all_of_them(tmp_path: Path, folder: Path, detector_dir: Path, scheduler: str) -> None:
    spec = ExtractorSpec(weights=str(detector_dir), selection=SelectionConfig(min_regions=4, max_regions=8))
    config = JobConfig(scheduler=scheduler, block_size=4, torch_threads=1)
    sources = find_images(folder)
    (folder / "gone.png").unlink()
    summary = detect_to_store(sources, tmp_path / "store", spec, config)
    assert {problem.image_id for problem in summary.problems} == FAULTS.keys()
    for problem in summary.problems:
        assert FAULTS[problem.image_id] in problem.reason
        assert "\n" not in problem.reason + problem.path
    store = RegionStore.open(tmp_path / "store")
    assert {problem.image_id for problem in store.problems()} == FAULTS.keys()
    good = {"000", "really_png", "moving", *SIZES, *ODD_NAMES.values()}
    assert set(store.image_ids) == good
    assert all(4 <= len(store.image(image_id).boxes) <= 8 for image_id in good)
    assert {name: notes for name, notes in store.notes().items() if notes} == NOTES
    for name, size in SIZES.items():
        assert (store.image(name).width, store.image(name).height) == size
    assert verify(tmp_path / "store", full=True).ok
