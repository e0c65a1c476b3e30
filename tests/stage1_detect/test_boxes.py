import torch
from torch import Tensor
from torchvision.ops import box_iou

from stage1_detect.boxes import clip, decode, encode, intersection, pairwise_iou


def random_boxes(*shape: int) -> Tensor:
    corner = torch.rand(*shape, 2) * 80
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2) * 40], -1)


def test_decode_undoes_encode() -> None:
    torch.manual_seed(0)
    boxes, targets = random_boxes(3, 50), random_boxes(3, 50)
    weights = (10.0, 10.0, 5.0, 5.0)
    torch.testing.assert_close(
        decode(encode(targets, boxes, weights), boxes, weights), targets, atol=1e-3, rtol=0
    )


def test_deltas_are_shifts_in_box_sizes_and_log_ratios() -> None:
    box, target = torch.tensor([0.0, 0, 10, 20]), torch.tensor([5.0, 0, 25, 20])
    expected = torch.tensor([1.0, 0, torch.tensor(2.0).log().item(), 0])
    torch.testing.assert_close(encode(target, box, (1.0, 1.0, 1.0, 1.0)), expected)


def test_overlaps_of_a_batch_equal_torchvisions() -> None:
    torch.manual_seed(1)
    boxes, others = random_boxes(4, 30), random_boxes(4, 7)
    for i, overlap in enumerate(pairwise_iou(boxes, others)):
        torch.testing.assert_close(overlap, box_iou(boxes[i], others[i]))


def test_empty_boxes_overlap_nothing() -> None:
    assert pairwise_iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0
    assert intersection(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 2, 3, 3]])).item() == 0


def test_clipped_boxes_lie_in_the_picture() -> None:
    clipped = clip(torch.tensor([[-5.0, -1, 300, 20]]), (10, 200))
    assert clipped.tolist() == [[0, 0, 200, 10]]
