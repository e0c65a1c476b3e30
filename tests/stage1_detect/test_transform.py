from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from stage1_detect import transform
from stage1_detect.config import DetectorConfig

CPU = torch.device("cpu")


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((128, 128), (128, 128)), ((480, 640), (128, 171)), ((64, 100), (128, 200)), ((10, 4000), (1, 256))],
)
def test_the_short_side_is_met_unless_the_long_side_gets_too_long(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert transform.network_size(*size, DetectorConfig()) == expected


def test_a_picture_of_the_networks_size_is_only_normalised() -> None:
    config = DetectorConfig(pixel_mean=(1.0, 2.0, 3.0), pixel_std=(2.0, 4.0, 8.0))
    pixels = picture(128, 128)
    batch = transform.prepare([pixels], config, CPU)
    expected = (pixels.astype(np.float32) - [1, 2, 3]) / [2, 4, 8]
    np.testing.assert_allclose(batch.images[0].permute(1, 2, 0).numpy(), expected, rtol=1e-6)


def test_mean_and_deviation_are_in_the_networks_channel_order() -> None:
    config = DetectorConfig(channel_order="bgr", pixel_mean=(1.0, 2.0, 3.0), pixel_std=(1.0, 1.0, 1.0))
    pixels = picture(128, 128)
    images = transform.prepare([pixels], config, CPU).images
    np.testing.assert_array_equal(images[0, 0].numpy(), pixels[..., 2].astype(np.float32) - 1)


def test_a_picture_is_resized_alike_alone_and_in_company() -> None:
    config = DetectorConfig()
    pictures = [picture(100, 100, 1), picture(128, 128, 2), picture(300, 300, 3)]
    together = transform.prepare(pictures, config, CPU).images
    for i, pixels in enumerate(pictures):
        assert torch.equal(together[i : i + 1], transform.prepare([pixels], config, CPU).images)


def test_groups_hold_every_picture_once_and_one_network_size_each() -> None:
    config = DetectorConfig()
    pictures = [picture(128, 128), picture(128, 200), picture(64, 64), picture(256, 400)]
    assert transform.group_by_size(pictures, config) == [[0, 2], [1, 3]]
    with pytest.raises(ValueError, match="group them"):
        transform.prepare(pictures, config, CPU)


def test_boxes_go_to_the_original_and_back() -> None:
    batch = transform.prepare([picture(480, 640)], DetectorConfig(), CPU)
    boxes = torch.tensor([[0.0, 0, 640, 480], [100, 50, 300, 400]])
    network = transform.to_network_boxes(boxes, batch, 0)
    assert network[0].tolist() == pytest.approx([0, 0, 171, 128])
    torch.testing.assert_close(transform.to_original(network, batch, 0), boxes)


def test_boxes_of_the_original_stay_inside_it() -> None:
    batch = transform.prepare([picture(301, 301)], DetectorConfig(), CPU)
    box = transform.to_original(torch.tensor([[-1.0, 0, 128, 129]]), batch, 0)
    assert box.tolist() == [[0, 0, 301, 301]]


def opencv_resize(pixels: NDArray[np.uint8], scale: float) -> NDArray[np.float32]:
    """cv2.resize(pixels.astype(float32), None, None, fx=scale, fy=scale), pixel by pixel, as its documents say."""
    height, width = (round(side * scale) for side in pixels.shape[:2])
    out = np.zeros((height, width, 3))
    for row in range(height):
        for column in range(width):
            y, x = (
                min(max((place + 0.5) / scale - 0.5, 0), side - 1)
                for place, side in ((row, pixels.shape[0]), (column, pixels.shape[1]))
            )
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, pixels.shape[0] - 1), min(x0 + 1, pixels.shape[1] - 1)
            above = pixels[y0, x0] * (1 - (x - x0)) + pixels[y0, x1] * (x - x0)
            below = pixels[y1, x0] * (1 - (x - x0)) + pixels[y1, x1] * (x - x0)
            out[row, column] = above * (1 - (y - y0)) + below * (y - y0)
    return out.astype(np.float32)


@pytest.mark.parametrize("size", [(30, 41), (7, 19), (100, 55)])
def test_the_exact_resize_keeps_the_scale_where_the_size_was_rounded(size: tuple[int, int]) -> None:
    config = DetectorConfig(
        interpolation="bilinear_exact",
        pixel_mean=(0.0, 0.0, 0.0),
        pixel_std=(1.0, 1.0, 1.0),
        short_side=24,
        long_side=50,
    )
    pixels = picture(*size)
    batch = transform.prepare([pixels], config, CPU)
    scale = min(24 / min(size), 50 / max(size))
    np.testing.assert_allclose(
        batch.images[0].permute(1, 2, 0).numpy(), opencv_resize(pixels, scale), atol=1e-3
    )
    assert batch.scales.tolist() == [[pytest.approx(scale)] * 2]


@pytest.mark.parametrize(
    ("rounding", "expected"), [("half_even", (300, 1000)), ("half_up", (301, 1000)), ("floor", (300, 1000))]
)
def test_sizes_are_rounded_as_those_who_trained_the_weights_do(
    rounding: Any, expected: tuple[int, int]
) -> None:
    config = DetectorConfig(size_rounding=rounding, short_side=600, long_side=1000)
    assert transform.network_size(601, 2000, config) == expected
    assert transform.network_size(480, 640, config) == (600, 800)


@pytest.mark.parametrize("size", [(480, 641), (427, 640), (333, 1000), (1001, 500), (2, 3)])
def test_rounding_down_gives_the_sizes_of_torchvision(size: tuple[int, int]) -> None:
    config = DetectorConfig(size_rounding="floor", short_side=800, long_side=1333)
    torchvisions = GeneralizedRCNNTransform(800, 1333, [0.0] * 3, [1.0] * 3, size_divisible=1)
    images, _ = torchvisions([torch.zeros(3, *size)])
    assert transform.network_size(*size, config) == images.image_sizes[0]
