import pytest
import torch
from torchvision.ops import roi_align, roi_pool

from stage1_detect.pooling import separable_roi_align, tabled_roi_pool


@pytest.mark.parametrize(("size", "sampling", "shape"), [(7, 2, (16, 16)), (3, 1, (9, 14)), (14, 3, (1, 5))])
def test_matrix_products_equal_torchvision_forward_and_backward(
    size: int, sampling: int, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    ours = torch.randn(5, *shape, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    corner = torch.rand(20, 2) * 60 - 5  # some stand out of the picture of at most 64 pixels
    boxes = torch.cat([corner, corner + torch.rand(20, 2) * 30], 1)
    pooled = separable_roi_align(ours, boxes, size, 0.25, sampling)
    expected = roi_align(theirs[None], [boxes], size, 0.25, sampling, aligned=True)
    torch.testing.assert_close(pooled, expected, atol=2e-5, rtol=0)
    weights = torch.randn_like(expected)
    (pooled * weights).sum().backward()  # type: ignore[no-untyped-call]
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=0)


@pytest.mark.parametrize("grid", [0.0, 1.0, 8.0])
def test_tables_of_maxima_equal_torchvision_bit_for_bit(grid: float) -> None:
    """Corners anywhere, on whole pixels and on half cells; boxes that stand out of the map, and that lie outside."""
    generator = torch.Generator().manual_seed(int(grid))
    for case in range(80):
        height, width, channels = (int(torch.randint(1, n, (1,), generator=generator)) for n in (40, 60, 9))
        feature_map = torch.randn(channels, height, width, generator=generator)
        extent = torch.tensor([width, height]) * 16.0
        corner = torch.rand(20, 2, generator=generator) * extent * 1.1 - 20
        boxes = torch.cat([corner, corner + torch.rand(20, 2, generator=generator) * extent], 1)
        if grid:
            boxes = (boxes / grid).round() * grid
        size = (7, 14, 3, 1)[case % 4]
        expected = roi_pool(feature_map[None], [boxes], size, 1 / 16)
        assert torch.equal(tabled_roi_pool(feature_map, boxes, size, 1 / 16), expected)


def test_no_boxes_give_no_regions() -> None:
    assert separable_roi_align(torch.zeros(5, 8, 8), torch.zeros(0, 4), 7, 0.25, 2).shape == (0, 5, 7, 7)
    assert tabled_roi_pool(torch.zeros(5, 8, 8), torch.zeros(0, 4), 7, 0.25).shape == (0, 5, 7, 7)
