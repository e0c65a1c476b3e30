import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from stage1_detect.config import SelectionConfig
from stage1_detect.select import predicted_objects, select_regions
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
