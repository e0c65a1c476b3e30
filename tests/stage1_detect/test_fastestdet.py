"""FastestDet's output by hand, and files that are no FastestDet."""

from pathlib import Path

import numpy as np
import pytest

from stage1_detect.fastestdet import FastestDet, decode
from store_schema.errors import CheckpointError, InputNotFoundError

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"


def test_decoding_one_cell_by_hand() -> None:
    output = np.zeros((85, 2, 4), np.float32)
    output[:5, 1, 2] = [0.5, np.arctanh(0.5), np.arctanh(-0.5), 0, -np.log(3)]  # sigmoid: 1/2 and 1/4
    output[5 + 16, 1, 2] = 0.25
    boxes, class_ids, scores = decode(output)
    cell = 1 * 4 + 2
    assert class_ids[cell] == 16
    assert scores[cell] == pytest.approx(0.5**0.6 * 0.25**0.4)
    centre_x, centre_y = 2.5 / 4, 0.5 / 2
    np.testing.assert_allclose(
        boxes[cell], [centre_x - 0.25, centre_y - 0.125, centre_x + 0.25, centre_y + 0.125], rtol=1e-5
    )
    assert scores[:cell].max() == 0


def test_files_that_are_no_fastestdet_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"expected FastestDet as \.onnx"):
        FastestDet(tmp_path / "nowhere.onnx", score_thresh=0.1, nms_thresh=0.5)
    (tmp_path / "x.onnx").write_bytes(b"no network")
    with pytest.raises(CheckpointError, match=r"x\.onnx: not readable as FastestDet"):
        FastestDet(tmp_path / "x.onnx", score_thresh=0.1, nms_thresh=0.5)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared weights are not on this machine")
@pytest.mark.parametrize("size", [(1, 1), (3, 400), (300, 400)])
def test_boxes_lie_in_the_picture_best_first(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = FastestDet(SHARED / "weights/FastestDet.onnx", score_thresh=0.0, nms_thresh=0.5).find(image)
    assert len(found.boxes)
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2:] <= [size[1], size[0]]).all()
    assert (found.boxes[:, :2] < found.boxes[:, 2:]).all()
    assert (np.diff(found.scores) <= 0).all()
