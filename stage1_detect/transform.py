"""Pixels of a picture into the network's input, and boxes back.

Pictures are batched only when the network sees them at the same size, so that nothing is padded: padding
reaches the features through the border of convolutions and of pooling. A picture whose size is already the
network's is not resampled. Size, scale and interpolation are those of whoever trained the weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from stage1_detect.config import ChannelOrder, Interpolation, SizeRounding


class Preprocessing(Protocol):
    """What the weights expect of pixels: `DetectorConfig`, or a classifier's configuration."""

    @property
    def short_side(self) -> int: ...
    @property
    def long_side(self) -> int: ...
    @property
    def channel_order(self) -> ChannelOrder: ...
    @property
    def pixel_mean(self) -> tuple[float, ...]: ...
    @property
    def pixel_std(self) -> tuple[float, ...]: ...
    @property
    def interpolation(self) -> Interpolation: ...
    @property
    def size_rounding(self) -> SizeRounding: ...


@dataclass(frozen=True)
class ImageBatch:
    """Pictures at one network size."""

    images: Tensor
    """[B, 3, h, w] float32, normalised, in the network's channel order."""
    scales: Tensor
    """[B, 2] float32, network pixels per original pixel along x and y."""
    sizes: tuple[tuple[int, int], ...]
    """Original (height, width) of each picture."""
    indices: tuple[int, ...]
    """Places of the pictures in the list that was prepared."""

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def network_size(self) -> tuple[int, int]:
        """(height, width) that the network sees."""
        return int(self.images.shape[2]), int(self.images.shape[3])


def network_size(height: int, width: int, config: Preprocessing) -> tuple[int, int]:
    """(height, width) of a picture in the network: short side as configured, unless the long side gets too long."""
    if config.size_rounding == "half_up":
        return _size_rounded_up(height, width, config)
    scale = _scale(height, width, config)
    rounding = math.floor if config.size_rounding == "floor" else round
    return max(1, rounding(scale * height)), max(1, rounding(scale * width))


def group_by_size(images: Sequence[NDArray[np.uint8]], config: Preprocessing) -> list[list[int]]:
    """Indices of the pictures that the network sees at one size, groups in the order of their first picture."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(network_size(image.shape[0], image.shape[1], config), []).append(index)
    return list(groups.values())


def to_network(images: Sequence[NDArray[np.uint8]], config: Preprocessing, device: torch.device) -> Tensor:
    """[B, 3, h, w] float32 on the device, channels last, from RGB pictures of one network size."""
    sizes = {network_size(image.shape[0], image.shape[1], config) for image in images}
    if len(sizes) != 1:
        raise ValueError(
            f"pictures of one network size expected, these have {sorted(sizes)}; group them first"
        )
    (target,) = sizes
    if all(image.shape[:2] == target for image in images):
        pixels = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float()
    else:
        pixels = torch.cat([_resize(image, target, config, device) for image in images])
    mean, std = (pixels.new_tensor(v)[:, None, None] for v in (config.pixel_mean, config.pixel_std))
    if config.channel_order == "bgr":
        pixels = pixels.flip(1)
    return pixels.sub(mean).div(std).contiguous(memory_format=torch.channels_last)


def prepare(
    images: Sequence[NDArray[np.uint8]],
    config: Preprocessing,
    device: torch.device,
    indices: Sequence[int] | None = None,
) -> ImageBatch:
    """A batch of RGB pictures [H, W, 3] of one network size. Errors: `ValueError` where the sizes differ."""
    pixels = to_network(images, config, device)
    sizes = tuple((int(image.shape[0]), int(image.shape[1])) for image in images)
    height, width = pixels.shape[2:]
    if config.interpolation == "bilinear_exact":
        by_axis = [[_scale(h, w, config)] * 2 for h, w in sizes]
    else:
        by_axis = [[width / w, height / h] for h, w in sizes]
    scales = torch.tensor(by_axis, dtype=torch.float32, device=device)
    return ImageBatch(pixels, scales, sizes, tuple(range(len(images)) if indices is None else indices))


def to_original(boxes: Tensor, batch: ImageBatch, index: int) -> Tensor:
    """Boxes [n, 4] of the batch's picture `index`, from network pixels to pixels of the original, clipped to it."""
    height, width = batch.sizes[index]
    boxes = boxes / batch.scales[index].repeat(2)
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def to_network_boxes(boxes: Tensor, batch: ImageBatch, index: int) -> Tensor:
    """Boxes [n, 4] of the batch's picture `index`, from original to network pixels."""
    return boxes * batch.scales[index].repeat(2)


def in_company(tensor: Tensor, batch: ImageBatch) -> Tensor:
    """A small lone picture twice, any other batch as it is.

    On the CPU torch computes small convolutions of one picture by another routine than those of several, and
    the last bits differ. From 2 pictures on, and for large ones, every batch gives the same bits (tried with
    torch 2.15 for 1 to 16 pictures). Costs a lone picture of 128 pixels about a millisecond.
    """
    height, width = batch.network_size
    if len(batch) > 1 or tensor.device.type != "cpu" or height * width > _SMALL_PIXELS:
        return tensor
    return tensor.expand(2, -1, -1, -1).contiguous(memory_format=torch.channels_last)


_SMALL_PIXELS = 256 * 256


def _resize(
    image: NDArray[np.uint8], target: tuple[int, int], config: Preprocessing, device: torch.device
) -> Tensor:
    """[1, 3, h, w] float32: one picture alone, so that its pixels do not depend on its company."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].float()
    if pixels.shape[2:] == target:
        return pixels
    if config.interpolation == "bilinear_exact":
        scale = _scale(image.shape[0], image.shape[1], config)
        return _resize_axis(_resize_axis(pixels, 3, target[1], scale), 2, target[0], scale)
    if config.interpolation == "bicubic_antialias":  # it overshoots at edges
        resized = F.interpolate(pixels, size=target, mode="bicubic", align_corners=False, antialias=True)
        return resized.clamp(0, 255)
    antialias = config.interpolation == "bilinear_antialias"
    return F.interpolate(pixels, size=target, mode="bilinear", align_corners=False, antialias=antialias)


def _resize_axis(pixels: Tensor, axis: int, size: int, scale: float) -> Tensor:
    """Linear interpolation along one axis by the exact scale: what OpenCV does with `fx` and `fy`.

    The middle of the n-th pixel lies at (n + 1/2) / scale; beyond the border the border's pixel holds.
    """
    last = pixels.shape[axis] - 1
    places = (torch.arange(size, dtype=torch.float64) + 0.5) / scale - 0.5
    places = places.clamp(0, last).to(pixels.device)
    below = places.floor().long()
    shape = [1] * pixels.dim()
    shape[axis] = size
    weight = (places - below).float().reshape(shape)
    above = (below + 1).clamp(max=last)
    return torch.lerp(pixels.index_select(axis, below), pixels.index_select(axis, above), weight)


def _scale(height: int, width: int, config: Preprocessing) -> float:
    """Network pixels per original pixel, before the sizes are rounded."""
    short, long = min(height, width), max(height, width)
    scale = config.short_side / short
    if config.size_rounding == "floor":
        return min(scale, config.long_side / long)
    return config.long_side / long if round(scale * long) > config.long_side else scale


def _size_rounded_up(height: int, width: int, config: Preprocessing) -> tuple[int, int]:
    """As the Hugging Face release: in two steps, the second from the unrounded result of the first."""
    scale = config.short_side / min(height, width)
    short = float(config.short_side)
    new = (short, scale * width) if height < width else (scale * height, short)
    if max(new) > config.long_side:
        scale = config.long_side / max(new)
        new = new[0] * scale, new[1] * scale
    return max(1, int(new[0] + 0.5)), max(1, int(new[1] + 0.5))
