"""FastestDet, a small COCO detector that comes as an ONNX file: boxes for real photographs within milliseconds.

One picture at a time through onnxruntime, about 8 ms on one core. Its boxes have no features: those are pooled from
another network's map (`given.py`).

Source: github.com/dog-qiuqiu/FastestDet, `example/onnx-runtime`: the network's output is [1, 85, 22, 22] of
objectness, (dx, dy) before tanh, (w, h) before sigmoid, and the probabilities of COCO's 80 classes; a box's
score is objectness^0.6 times its best class^0.4.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.ops import batched_nms

from stage1_detect.box_tables import COCO_NAMES, GivenBoxes
from store_schema.errors import CheckpointError, InputNotFoundError


class FastestDet:
    """Finds COCO's objects in one picture at a time."""

    def __init__(self, path: str | Path, *, score_thresh: float, nms_thresh: float) -> None:
        """Load the network on the CPU, with torch's number of threads.

        Errors: `InputNotFoundError`; `CheckpointError` where the file is no FastestDet.
        """
        if not Path(path).is_file():
            raise InputNotFoundError(f"{path}: no such file; expected FastestDet as .onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            (self._input,), (output,) = self._session.get_inputs(), self._session.get_outputs()
            _, channels, self._height, self._width = self._input.shape
            _, outputs, _, _ = output.shape
        except Exception as error:  # onnxruntime's own errors share no class but Exception
            raise CheckpointError(
                f"{path}: not readable as FastestDet ({str(error).splitlines()[0]})"
            ) from error
        if (channels, outputs) != (3, 5 + len(COCO_NAMES)):
            raise CheckpointError(
                f"{path}: FastestDet has 3 channels in and {5 + len(COCO_NAMES)} out, this network "
                f"{channels} and {outputs}"
            )
        self._score_thresh = score_thresh
        self._nms_thresh = nms_thresh

    def find(self, image: NDArray[np.uint8]) -> GivenBoxes:
        """Boxes of an RGB picture [H, W, 3] in its own pixels, best first, thinned class by class."""
        size = (self._width, self._height)
        resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), np.float32)
        pixels = resized[..., ::-1].transpose(2, 0, 1)[None] / np.float32(255)  # BGR
        (output,) = self._session.run(None, {self._input.name: np.ascontiguousarray(pixels)})
        boxes, class_ids, scores = decode(output[0])
        height, width = image.shape[:2]
        boxes = np.clip(boxes, 0, 1) * np.array([width, height, width, height], np.float32)
        sure = (scores >= self._score_thresh) & (boxes[:, :2] < boxes[:, 2:]).all(1)
        boxes, class_ids, scores = boxes[sure], class_ids[sure], scores[sure]
        kept = batched_nms(
            *(torch.from_numpy(a) for a in (boxes, scores, class_ids)), self._nms_thresh
        ).numpy()
        return GivenBoxes(boxes[kept], class_ids[kept], scores[kept])


def decode(
    output: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """One box of each cell, from the network's output [85, h, w].

    Returns:
        Boxes [h * w, 4] xyxy in parts of the picture, not clipped; class ids [h * w]; scores [h * w]; cells in rows.
    """
    _, height, width = output.shape
    objectness, dx, dy, w, h = output[:5].reshape(5, -1)
    classes = output[5:].reshape(output.shape[0] - 5, -1)
    row, column = np.divmod(np.arange(height * width), width)
    centre_x, centre_y = (column + np.tanh(dx)) / width, (row + np.tanh(dy)) / height
    half_w, half_h = _sigmoid(w) / 2, _sigmoid(h) / 2
    boxes = np.stack([centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h], 1)
    scores = objectness**0.6 * classes.max(0) ** 0.4
    return boxes.astype(np.float32), classes.argmax(0), scores.astype(np.float32)


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(1 / (1 + np.exp(-x)), np.float32)
