import pytest
import torch
from torchvision.ops import roi_align

from stage1_detect.pooling import separable_roi_align


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


def test_no_boxes_give_no_regions() -> None:
    assert separable_roi_align(torch.zeros(5, 8, 8), torch.zeros(0, 4), 7, 0.25, 2).shape == (0, 5, 7, 7)
