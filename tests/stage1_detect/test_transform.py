import numpy as np
import pytest
import torch
from numpy.typing import NDArray

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
