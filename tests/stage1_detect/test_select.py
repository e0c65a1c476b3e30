from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import nms

from stage1_detect.config import EqualScores, SelectionConfig
from stage1_detect.select import completing_boxes, predicted_objects, select_moved, select_regions
from store_schema.errors import ConfigError


def published_rule(boxes: Tensor, class_probs: Tensor, config: SelectionConfig) -> list[int]:
    """The release's loop, class by class, then sorted by score with ties in index order."""
    best = torch.zeros(len(boxes))
    for class_id in range(1, class_probs.shape[1]):
        keep = nms(boxes, class_probs[:, class_id].contiguous(), config.nms_thresh)
        best[keep] = torch.maximum(best[keep], class_probs[keep, class_id])
    above = int((best >= config.score_thresh).sum())
    count = min(max(above, config.min_regions), config.max_regions, len(boxes))
    return best.argsort(descending=True, stable=True)[:count].tolist()


def random_case(rng: np.random.Generator) -> tuple[Tensor, Tensor, SelectionConfig]:
    """Few or many boxes, coarse coordinates so that overlaps meet the threshold exactly, few levels so that
    scores tie, sometimes everything below the threshold."""
    count, classes = int(rng.integers(0, 40)), int(rng.integers(1, 12))
    grid = int(rng.choice([6, 12, 200]))
    corner = rng.integers(0, grid, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, grid, (count, 2))], 1)
    probs = rng.dirichlet(np.full(classes + 1, 0.3), count)
    if rng.random() < 0.5:
        probs = np.round(probs, 1)
    if rng.random() < 0.2:
        probs *= 0.1
    low = int(rng.integers(0, 30))
    config = SelectionConfig(
        min_regions=low,
        max_regions=low + int(rng.integers(1, 20)),
        score_thresh=float(rng.choice([0.0, 0.1, 0.2, 0.7])),
        nms_thresh=float(rng.choice([0.0, 0.3, 0.5, 1.0])),
    )
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(probs).float(), config


def test_selection_equals_a_loop_over_classes_on_random_cases() -> None:
    rng = np.random.default_rng(0)
    for case in range(3000):
        boxes, probs, config = random_case(rng)
        assert select_regions(boxes, probs, config).tolist() == published_rule(boxes, probs, config), case


SORTS: dict[EqualScores, Callable[[NDArray[np.float32]], NDArray[np.int64]]] = {
    "index": lambda scores: np.argsort(-scores, kind="stable"),
    "torch_sort": lambda scores: torch.from_numpy(scores).sort(descending=True).indices.numpy(),
    "numpy_argsort": lambda scores: scores.argsort()[::-1],
}


def caffe_nms(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], thresh: float, ties: EqualScores = "index"
) -> list[int]:
    """The loop of the Caffe release's CPU form: inclusive boxes, suppressed at the threshold or above."""
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    order = SORTS[ties](scores)
    suppressed, kept = np.zeros(len(boxes), bool), []
    for place, i in enumerate(order):
        if suppressed[i]:
            continue
        kept.append(int(i))
        rest = order[place + 1 :]
        width = np.maximum(0, np.minimum(x2[i], x2[rest]) - np.maximum(x1[i], x1[rest]) + 1)
        height = np.maximum(0, np.minimum(y2[i], y2[rest]) - np.maximum(y1[i], y1[rest]) + 1)
        inter = width * height
        suppressed[rest[inter / (areas[i] + areas[rest] - inter) >= thresh]] = True
    return kept


def caffe_rule(boxes: Tensor, class_probs: Tensor, config: SelectionConfig) -> list[int]:
    """The release's extraction, line by line; equal scores in index order, which numpy's own sort leaves open."""
    probs, best = class_probs.numpy(), np.zeros(len(boxes), np.float32)
    for class_id in range(1, probs.shape[1]):
        keep = caffe_nms(boxes.numpy(), probs[:, class_id], config.nms_thresh)
        best[keep] = np.where(probs[keep, class_id] > best[keep], probs[keep, class_id], best[keep])
    kept = np.where(best >= np.float32(config.score_thresh))[0]
    if len(kept) < config.min_regions:
        kept = np.argsort(-best, kind="stable")[: config.min_regions]
    elif len(kept) > config.max_regions:
        kept = np.argsort(-best, kind="stable")[: config.max_regions]
    return [int(index) for index in kept]


def test_selection_equals_the_caffe_releases_loop_on_random_cases() -> None:
    """Whole-pixel boxes meet the threshold exactly; the order is the proposals' where no limit applies."""
    rng = np.random.default_rng(2)
    unsorted = 0
    for case in range(1500):
        boxes, probs, config = random_case(rng)
        config = replace(config, order="proposal")
        chosen = select_regions(boxes, probs, config, inclusive=True).tolist()
        assert chosen == caffe_rule(boxes, probs, config), case
        unsorted += (
            chosen != select_regions(boxes, probs, replace(config, order="score"), inclusive=True).tolist()
        )
    assert unsorted > 50


@pytest.mark.parametrize("ties", ["torch_sort", "numpy_argsort"])
def test_regions_equal_in_score_are_thinned_in_the_order_of_the_releases_own_sort(ties: EqualScores) -> None:
    """Three levels of score among a hundred boxes: here which of equals comes first decides what is kept."""
    rng = np.random.default_rng(3)
    other = 0
    for case in range(60):
        corner = rng.integers(0, 60, (100, 2))
        boxes = torch.tensor(np.concatenate([corner, corner + rng.integers(10, 60, (100, 2))], 1)).float()
        probs = torch.from_numpy(rng.choice([0.1, 0.3, 1.0], (100, 4)).astype(np.float32))
        best = np.zeros(100, np.float32)
        for class_id in range(1, 4):
            keep = caffe_nms(boxes.numpy(), probs[:, class_id].numpy(), 0.3, ties)
            best[keep] = np.maximum(best[keep], probs[keep, class_id].numpy())
        config = SelectionConfig(min_regions=0, max_regions=100, score_thresh=0.2)
        chosen = set(select_regions(boxes, probs, config, inclusive=True, ties=ties).tolist())
        assert chosen == set(np.flatnonzero(best >= np.float32(0.2)).tolist()), case
        other += chosen != set(select_regions(boxes, probs, config, inclusive=True).tolist())
    assert other > 30


def hugging_face_rule(boxes: Tensor, scores: Tensor, config: SelectionConfig) -> list[int]:
    """Thresholds tried in turn until enough are left; then, where the release fails, the best of the rest."""
    kept: list[int] = []
    for thresh in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        kept = nms(boxes, scores, thresh).tolist()
        if len(kept) >= config.min_regions:
            return kept[: config.max_regions]
    rest = [i for i in scores.argsort(descending=True, stable=True).tolist() if i not in kept]
    return (kept + rest)[: config.min_regions]


def test_selection_of_moved_boxes_equals_the_hugging_face_loop_on_random_cases() -> None:
    rng = np.random.default_rng(3)
    for case in range(1500):
        boxes, probs, given = random_case(rng)
        config = SelectionConfig(
            min_regions=given.min_regions, max_regions=given.max_regions, nms_thresh=0.3, rule="max_nms"
        )
        scores = probs[:, 1:].amax(1) if probs.shape[1] > 1 else torch.zeros(len(boxes))
        assert select_moved(boxes, scores, config).tolist() == hugging_face_rule(boxes, scores, config), case


def test_completing_boxes_are_the_picture_and_its_parts() -> None:
    boxes = completing_boxes(6, (60, 120))
    expected = [
        [0, 0, 120, 60],
        [0, 0, 60, 30],
        [60, 0, 120, 30],
        [0, 30, 60, 60],
        [60, 30, 120, 60],
        [0, 0, 40, 20],
    ]
    torch.testing.assert_close(boxes, torch.tensor(expected).float())
    assert completing_boxes(0, (60, 120)).shape == (0, 4)
    many = completing_boxes(300, (7, 5))
    assert len(torch.unique(many, dim=0)) == 300
    assert (many[:, :2] < many[:, 2:]).all()


def test_selection_equals_a_loop_with_a_large_vocabulary_that_is_sorted_in_bands() -> None:
    rng = np.random.default_rng(1)
    for spread in (0.01, 0.1):
        corner = rng.uniform(0, 400, (120, 2))
        boxes = torch.tensor(np.concatenate([corner, corner + rng.uniform(20, 200, (120, 2))], 1)).float()
        probs = torch.tensor(rng.dirichlet(np.full(301, spread), 120)).float()
        for low, high in ((1, 5), (36, 36), (10, 100), (119, 200)):
            config = SelectionConfig(min_regions=low, max_regions=high)
            assert select_regions(boxes, probs, config).tolist() == published_rule(boxes, probs, config)


def test_a_region_counts_in_the_classes_where_nothing_better_covers_it() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
    probs = torch.tensor([[0.0, 0.9, 0.1], [0.0, 0.8, 0.15], [0.7, 0.05, 0.25]])
    adaptive = SelectionConfig(min_regions=0, max_regions=3)
    assert select_regions(boxes, probs, adaptive).tolist() == [0, 2]  # the second survives with 0.15 only
    filled = SelectionConfig(min_regions=3, max_regions=3)
    assert select_regions(boxes, probs, filled).tolist() == [0, 2, 1]


def test_fewer_proposals_than_min_regions_are_all_kept() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    probs = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    assert select_regions(boxes, probs, SelectionConfig(min_regions=5, max_regions=9)).tolist() == [0, 1]


def test_no_proposals_give_no_regions() -> None:
    kept = select_regions(torch.zeros(0, 4), torch.zeros(0, 3), SelectionConfig(min_regions=2, max_regions=9))
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


def test_predicted_objects_leave_background_out() -> None:
    ids, scores = predicted_objects(torch.tensor([[0.8, 0.05, 0.15], [0.1, 0.6, 0.3]]))
    assert ids.tolist() == [1, 0]
    assert scores.tolist() == pytest.approx([0.15, 0.6])


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_regions <= max_regions"):
        SelectionConfig(min_regions=5, max_regions=4)
