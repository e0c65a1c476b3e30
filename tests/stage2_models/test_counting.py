"""Counting by hand: identical boxes are one object, separate ones are several."""

import math

import pytest
import torch

from stage2_models.counting import COUNT_DIM, LikenessCounter, RegionCounter, describe_counts, pairwise_iou

SEPARATE = torch.tensor([[[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30]]])
SURE = 20.0  # sigmoid(20) is 1 to nine digits


def test_iou_by_hand() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 0, 0]]])
    expected = torch.tensor([[1, 1 / 3, 0, 0], [1 / 3, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    assert torch.allclose(pairwise_iou(boxes)[0], expected)


def _count(boxes: torch.Tensor, logits: list[float], real: int | None = None) -> float:
    mask = torch.arange(boxes.shape[1])[None] < (boxes.shape[1] if real is None else real)
    counter = RegionCounter()
    with torch.no_grad():
        counter.sharpness.fill_(100.0)  # so that "the same" is all or nothing
        return float(counter(torch.tensor([[logits]]), pairwise_iou(boxes), mask))


def test_separate_attended_boxes_count_each() -> None:
    assert _count(SEPARATE, [SURE] * 3) == pytest.approx(3.0, abs=1e-4)


def test_identical_boxes_count_once() -> None:
    twice = SEPARATE[:, [0, 0, 1]]
    assert _count(twice, [SURE] * 3) == pytest.approx(2.0, abs=1e-4)
    four_times = SEPARATE[:, [0, 0, 0, 0]]
    assert _count(four_times, [SURE] * 4) == pytest.approx(1.0, abs=1e-4)


def test_regions_that_are_not_attended_do_not_count() -> None:
    assert _count(SEPARATE, [SURE, -SURE, SURE]) == pytest.approx(2.0, abs=1e-4)


def test_padded_slots_do_not_count() -> None:
    assert _count(SEPARATE, [SURE, SURE, SURE], real=2) == pytest.approx(2.0, abs=1e-4)


@torch.no_grad()
def test_the_formula_as_loops_with_its_first_parameters() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 3)
    boxes = torch.tensor([[[0.0, 0, 10, 10], [3, 0, 13, 10], [1, 1, 10, 10]]])
    iou = pairwise_iou(boxes)
    counts = RegionCounter()(logits, iou, torch.ones(1, 3, dtype=torch.bool))

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    for glimpse in range(2):
        p = [sigmoid(float(logits[0, glimpse, i])) for i in range(3)]
        same = [[sigmoid(10 * (float(iou[0, i, j]) - 0.4)) for j in range(3)] for i in range(3)]
        expected = sum(p[i] / (1 + sum(same[i][j] * p[j] for j in range(3) if j != i)) for i in range(3))
        assert float(counts[0, glimpse]) == pytest.approx(expected, rel=1e-5)


def test_a_count_between_two_numbers_is_shared_by_them() -> None:
    described = describe_counts(torch.tensor([2.25, 9.0]))
    assert described[0].tolist() == pytest.approx([0, 0, 0.75, 0.25, 0, 0, 0, 2.25 / 4])
    assert described[1].tolist() == pytest.approx([0, 0, 0, 0, 0, 0, 1, 9 / 4])


@torch.no_grad()
def test_each_region_knows_how_many_objects_are_like_it() -> None:
    """Two kinds of things: one object of the first in two boxes and another one of it, and one of the second."""
    counter = LikenessCounter(2, 1)
    counter.sharpness.fill_(100.0)
    counter.scale.fill_(100.0)
    counter.project.weight.copy_(torch.eye(32, 2))
    counter.project.bias.zero_()
    boxes = torch.cat([SEPARATE[:, [0, 0, 1, 2]], torch.zeros(1, 1, 4)], 1)
    first, second = [1.0, 0.0], [0.0, 1.0]
    regions = torch.tensor([[first, first, first, second, [0.0, 0.0]]])
    mask = torch.tensor([[True] * 4 + [False]])
    described = counter(regions, boxes, mask)
    two, one = describe_counts(torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(described[0] / 3, torch.stack([two, two, two, one, torch.zeros(COUNT_DIM)]))


@torch.no_grad()
def test_likeness_equals_loops() -> None:
    torch.manual_seed(0)
    counter = LikenessCounter(3, 2)
    regions, boxes = torch.randn(1, 3, 3), torch.tensor([[[0.0, 0, 10, 10], [3, 0, 13, 10], [1, 1, 10, 10]]])
    iou = pairwise_iou(boxes)[0]
    described = counter(regions, boxes, torch.ones(1, 3, dtype=torch.bool))[0]
    projected = counter.project(regions)[0].view(3, 2, -1)
    for head, threshold in enumerate((0.5, 0.0)):
        for i in range(3):
            alike = [
                torch.sigmoid(
                    10 * (torch.cosine_similarity(projected[i, head], projected[j, head], 0) - threshold)
                )
                for j in range(3)
            ]
            count = torch.zeros(())
            for j in range(3):
                copies = sum(torch.sigmoid(10 * (iou[j, k] - 0.4)) * alike[k] for k in range(3) if k != j)
                count = count + alike[j] / (1 + copies)
            expected = describe_counts(count)
            torch.testing.assert_close(described[i, head * COUNT_DIM : (head + 1) * COUNT_DIM], 3 * expected)
