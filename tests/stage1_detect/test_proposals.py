import torch

from stage1_detect.config import DetectorConfig
from stage1_detect.proposals import RegionProposalNetwork, grid_anchors

CONFIG = DetectorConfig(rpn_pre_nms_test=50, rpn_post_nms_test=8, rpn_min_size=3.0)


def test_anchors_stand_in_the_middle_of_their_cells() -> None:
    anchors = grid_anchors((8.0, 16.0), (1.0, 4.0), 1, 2, 4)
    expected = [[-2, -2, 6, 6], [0, -6, 4, 10], [-6, -6, 10, 10], [-2, -14, 6, 18]]
    assert anchors[:4].tolist() == expected
    torch.testing.assert_close(anchors[4:], anchors[:4] + torch.tensor([4.0, 0, 4, 0]))


def test_scores_and_deltas_belong_to_their_anchors() -> None:
    """An objectness that fires for one anchor of one cell proposes that anchor first."""
    rpn = RegionProposalNetwork(CONFIG, channels=5, stride=4).eval()
    logits, deltas, anchors = rpn(torch.randn(2, 5, 16, 12))
    assert logits.shape == (2, 8 * 6 * 9)
    assert len(anchors) == logits.shape[1]
    logits, deltas = torch.zeros_like(logits), torch.zeros_like(deltas)
    cell = 3 * 6 + 2
    logits[1, cell * 9 + 4] = 5
    first = rpn.propose(logits, deltas, anchors, [(64, 48)] * 2)[1][0]
    assert first.tolist() == [2, 10, 38, 46]  # 36 pixels square around (20, 28)


def test_proposals_are_in_the_picture_large_enough_and_apart() -> None:
    torch.manual_seed(0)
    rpn = RegionProposalNetwork(CONFIG, channels=5, stride=4).eval()
    logits, deltas, anchors = rpn(torch.randn(3, 5, 16, 16) * 20)
    for boxes in rpn.propose(logits, deltas * 30, anchors, [(64, 64), (64, 40), (1, 1)]):
        assert len(boxes) <= 8
        assert ((boxes[:, 2:] - boxes[:, :2]) >= 3).all()
    clipped = rpn.propose(logits, deltas, anchors, [(64, 40)] * 3)
    assert all(boxes[:, 2].max() <= 40 and boxes.min() >= 0 for boxes in clipped)


def test_a_picture_too_small_for_any_box_has_no_proposals() -> None:
    rpn = RegionProposalNetwork(CONFIG, channels=5, stride=4).eval()
    logits, deltas, anchors = rpn(torch.randn(1, 5, 1, 1))
    assert rpn.propose(logits, deltas, anchors, [(2, 2)])[0].shape == (0, 4)


def test_anchors_made_under_inference_serve_training() -> None:
    with torch.inference_mode():
        grid_anchors((8.0,), (1.0,), 3, 3, 4)
    anchors = grid_anchors((8.0,), (1.0,), 3, 3, 4)
    scale = torch.ones(1, requires_grad=True)
    (anchors * scale).sum().backward()  # type: ignore[no-untyped-call]
    assert scale.grad is not None


INCLUSIVE = DetectorConfig(
    anchor_sizes=(),
    anchor_ratios=(),
    cell_anchors=((-4.0, -4.0, 3.0, 3.0), (-8.0, -2.0, 7.0, 1.0)),
    rpn_objectness="softmax",
    box_convention="inclusive",
    rpn_stride=1,
    rpn_min_size=4.0,
    rpn_min_size_kept=False,
    rpn_pre_nms_test=3,
    rpn_post_nms_test=3,
)


def test_listed_anchors_stand_at_the_corner_of_their_cells() -> None:
    rpn = RegionProposalNetwork(INCLUSIVE, channels=5, stride=8).eval()
    anchors = rpn(torch.zeros(1, 5, 2, 2))[2]
    assert anchors[:4].tolist() == [[-4, -4, 3, 3], [-8, -2, 7, 1], [4, -4, 11, 3], [0, -2, 15, 1]]
    assert anchors[-1].tolist() == [0, 6, 15, 9]


def test_a_softmax_scores_foreground_against_background_of_the_same_anchor() -> None:
    rpn = RegionProposalNetwork(INCLUSIVE, channels=5, stride=8).eval()
    with torch.no_grad():
        torch.nn.init.zeros_(rpn.objectness.weight)
        assert rpn.objectness.bias is not None
        rpn.objectness.bias.copy_(
            torch.tensor([1.0, 2.0, 5.0, 9.0])
        )  # background of both, foreground of both
        logits, _, _ = rpn(torch.zeros(1, 5, 1, 2))
    assert logits.tolist() == [[4, 7, 4, 7]]


def test_inclusive_boxes_are_tested_in_original_pixels_before_the_best_are_taken() -> None:
    """Heights: 4 (must exceed 4 times the scale), 8 and more. The small ones score best, and do not take the places."""
    rpn = RegionProposalNetwork(INCLUSIVE, channels=5, stride=8).eval()
    _, _, anchors = rpn(torch.zeros(1, 5, 4, 4))
    anchors = anchors + 16
    logits = torch.tensor([[1.0, 2.0]]).expand(16, 2).reshape(1, -1)
    deltas = torch.zeros(1, 32, 4)
    (halved,) = rpn.propose(logits, deltas, anchors, [(64, 64)], [0.5])
    assert [box[3] - box[1] + 1 for box in halved.tolist()] == [
        5,
        5,
        5,
    ]  # 4 high, and 1 as the decoding leaves it
    (whole,) = rpn.propose(logits, deltas, anchors, [(64, 64)], [1.5])
    assert [box[3] - box[1] + 1 for box in whole.tolist()] == [9, 9, 9]


def test_inclusive_boxes_end_at_the_last_pixel() -> None:
    rpn = RegionProposalNetwork(INCLUSIVE, channels=5, stride=8).eval()
    logits, deltas, anchors = rpn(torch.randn(1, 5, 4, 4))
    (boxes,) = rpn.propose(logits, deltas, anchors + 12, [(30, 28)], [1.0])
    assert boxes[:, 2].max() <= 27
    assert boxes[:, 3].max() <= 29
