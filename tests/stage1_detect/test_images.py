"""Pictures as they come: right colours, upright, or one error that says why."""

import os
import struct
import tempfile
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stage1_detect.images import load_image, printable
from store_schema.errors import ImageReadError

RED, GREEN, BLUE = (200, 30, 40), (20, 180, 60), (30, 50, 190)


def quadrants() -> Image.Image:
    """A 48 x 32 picture whose corners tell how it lies: red, green above blue, white."""
    pixels = np.full((32, 48, 3), 255, np.uint8)
    pixels[:16, :24], pixels[:16, 24:], pixels[16:, :24] = RED, GREEN, BLUE
    return Image.fromarray(pixels)


def corners(pixels: NDArray[np.uint8]) -> list[tuple[int, ...]]:
    height, width = pixels.shape[:2]
    places = [(height // 4, width // 4), (height // 4, 3 * width // 4), (3 * height // 4, width // 4)]
    return [tuple(int(v) for v in pixels[place]) for place in places]


def assert_upright(pixels: NDArray[np.uint8], tolerance: int = 12) -> None:
    assert pixels.dtype == np.uint8
    assert pixels.shape == (32, 48, 3)
    for found, wanted in zip(corners(pixels), (RED, GREEN, BLUE), strict=True):
        assert np.abs(np.subtract(found, wanted)).max() <= tolerance, (found, wanted)


def write_black_png(path: Path, width: int, height: int) -> None:
    """One bit a pixel, written directly: Pillow takes seconds for the large ones."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes((1 + (width + 7) // 8) * height), level=1)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 95}),
        ("a.jpg", {"quality": 95, "progressive": True}),
        ("a.png", {}),
        ("a.bmp", {}),
        ("a.webp", {"lossless": True}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("a.ppm", {}),
    ],
)
def test_every_usual_format_gives_its_pixels(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    quadrants().save(tmp_path / name, **options)
    assert_upright(load_image(tmp_path / name))


@pytest.mark.parametrize("mode", ["CMYK", "P", "RGBA", "PA"])
def test_other_colour_modes_keep_their_colours(tmp_path: Path, mode: str) -> None:
    path = tmp_path / {"CMYK": "a.jpg", "PA": "a.tif"}.get(mode, "a.png")
    image = quadrants().quantize(8) if mode.startswith("P") else quadrants()
    image.convert(mode).save(path)
    assert_upright(load_image(path))


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_becomes_three_equal_channels(tmp_path: Path, mode: str) -> None:
    quadrants().convert("L").convert(mode).save(tmp_path / "a.png")
    pixels = load_image(tmp_path / "a.png")
    assert pixels.shape == (32, 48, 3)
    assert (pixels == pixels[..., :1]).all()
    assert (pixels[-1, -1] == 255).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png")[0, :, 0], np.arange(256))


def test_floating_point_pixels_are_named_as_unreadable(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "a.tif")
    with pytest.raises(ImageReadError, match=r"a\.tif: .*between 0 and 1, not within 8 or 16 bits"):
        load_image(tmp_path / "a.tif")


def test_transparent_parts_show_white(tmp_path: Path) -> None:
    """What lies under transparent pixels is arbitrary, mostly black: a viewer never shows it."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (*RED, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert (loaded[:4] == RED).all()
    assert (loaded[4:] == 255).all()


def test_a_palette_entry_marked_transparent_shows_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.repeat([[0, 1]], 4, 0).astype(np.uint8), mode=None)
    palette = Image.new("P", image.size)
    palette.putdata(list(np.asarray(image).ravel()))
    palette.putpalette([*RED, 0, 0, 0])
    palette.save(tmp_path / "a.gif", transparency=1)
    loaded = load_image(tmp_path / "a.gif")
    assert (loaded[:, 0] == RED).all()
    assert (loaded[:, 1] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_every_exif_orientation_comes_out_upright(tmp_path: Path, name: str, orientation: int) -> None:
    stored_as = {  # what a camera held this way stores: the inverse of what a viewer does
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = quadrants()
    if orientation in stored_as:
        image = image.transpose(stored_as[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / name, exif=exif, quality=95)
    assert_upright(load_image(tmp_path / name), tolerance=30)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_does_not_cost_the_picture(tmp_path: Path) -> None:
    quadrants().save(
        tmp_path / "a.jpg", quality=95, exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff" + b"\xff" * 40
    )
    assert_upright(load_image(tmp_path / "a.jpg"))


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [quadrants(), Image.new("RGB", (48, 32), "black")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=50)
    assert_upright(load_image(tmp_path / "a.gif"), tolerance=30)


def test_content_decides_not_the_ending(tmp_path: Path) -> None:
    quadrants().save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert_upright(load_image(tmp_path / "a.jpg"))


@pytest.mark.parametrize("size", [(1, 1), (3, 4000)])
def test_extreme_shapes_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").shape == (size[1], size[0], 3)


@pytest.mark.parametrize(
    "name", ["with space.png", "größe 図.png", "line\nbreak.png", os.fsdecode(b"caf\xe9.png")]
)
def test_any_file_name_is_read(tmp_path: Path, name: str) -> None:
    quadrants().save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", tmp_path / name)
    assert_upright(load_image(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"this is no picture at all, only text\n" * 20, "not a picture in any format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture in any format"),
        (b"\xff\xd8\xff\xe0 then nothing", "not a picture in any format|cannot be decoded"),
    ],
)
def test_files_that_are_no_pictures_say_why(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageReadError, match=rf"a\.jpg: .*({reason})"):
        load_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp", "a.bmp", "a.tif"])
@pytest.mark.parametrize("part", [0.3, 0.8])
def test_a_truncated_file_is_an_error_not_a_grey_half(tmp_path: Path, name: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ImageReadError, match=name):
        load_image(tmp_path / name)


def test_too_many_pixels_are_refused_with_the_limit(tmp_path: Path) -> None:
    """30,000 x 30,000 pixels fit into a 110 KB file and would take 2.7 GB."""
    write_black_png(tmp_path / "bomb.png", 30_000, 30_000)
    with pytest.raises(
        ImageReadError, match=r"bomb\.png: 30000 x 30000 pixels are over the limit of 268,435,456"
    ):
        load_image(tmp_path / "bomb.png")


def test_large_photographs_are_read_without_a_warning(tmp_path: Path) -> None:
    """Pillow warns from 89 megapixels on, and phones make 108; warnings are errors in these tests."""
    write_black_png(tmp_path / "large.png", 10_000, 9_000)
    assert load_image(tmp_path / "large.png").shape == (9_000, 10_000, 3)
    assert Image.MAX_IMAGE_PIXELS is not None


def test_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    quadrants().save(tmp_path / "a.png")
    limit = Image.MAX_IMAGE_PIXELS

    def read() -> None:
        for _ in range(50):
            assert_upright(load_image(tmp_path / "a.png"))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert limit == Image.MAX_IMAGE_PIXELS


def test_missing_folder_loop_and_pipe_are_named(tmp_path: Path) -> None:
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in [
        ("gone.jpg", "No such file"),
        ("loop.jpg", "Too many levels of symbolic links"),
        ("pipe.jpg", "not a regular file"),
        (".", "Is a directory"),
    ]:
        with pytest.raises(ImageReadError, match=reason):
            load_image(tmp_path / name)


def test_unreadable_permissions_are_named() -> None:
    with tempfile.TemporaryDirectory() as folder:  # below tmp_path another user may not even look
        os.chmod(folder, 0o755)
        path = Path(folder) / "a.png"
        quadrants().save(path)
        path.chmod(0)
        was = os.geteuid()
        if was == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(ImageReadError, match=r"a\.png: cannot be opened \(Permission denied\)"):
                load_image(path)
        finally:
            os.seteuid(was)


def test_printable_escapes_what_would_break_a_log_line() -> None:
    assert printable("größe 図.jpg") == "größe 図.jpg"
    assert printable(os.fsdecode(b"a\n\xe9.jpg")) == r"a\n\xe9.jpg"
