"""Captions as arrays for training: encoded once, batched in the order in which the captioner reads them.

The captions of a picture are sorted by falling length within the picture; a step reads only as many of them as
any picture still needs, so little of the work falls on padding (a third of it, on captions of usual lengths).
Legend: B pictures, Q captions of each, T steps, S the sum over the steps of the captions read, M real tokens.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage2_models.vocabulary import Vocabulary


@dataclass(frozen=True)
class CaptionTokens:
    """One batch of captions, in the captioner's reading order.

    inputs: [S, B] int64, words read: step by step, within a step caption by caption. captions_per_step: [T] how
    many captions are read at each step. targets: [M] int64, the words to predict, eos included, real ones only.
    positions: [M] int64, where the flattened [S * B] outputs predict them.
    """

    inputs: Tensor
    captions_per_step: tuple[int, ...]
    targets: Tensor
    positions: Tensor

    @classmethod
    def from_arrays(
        cls,
        token_ids: NDArray[np.integer],
        lengths: NDArray[np.integer],
        vocabulary: Vocabulary,
        ends: NDArray[np.bool_] | None = None,
    ) -> Self:
        """Order captions for reading.

        Args:
            token_ids: [B, Q, T - 1 or more] the words' ids, without bos and eos.
            lengths: [B, Q], the number of words; -1 where a picture has no such caption.
            ends: [B, Q], whether the end is to be predicted too, as if not given; not of captions that were cut.
        """
        counts = lengths + (1 if ends is None else ends)  # of tokens to predict
        order = np.argsort(-counts, axis=1, kind="stable")
        lengths, counts = np.take_along_axis(lengths, order, 1), np.take_along_axis(counts, order, 1)
        token_ids = np.take_along_axis(token_ids, order[:, :, None], 1)
        steps = max(1, int(counts.max()))
        targets = np.full((*lengths.shape, steps), vocabulary.eos_id, dtype=np.int64)
        targets[:, :, : token_ids.shape[2]] = token_ids[:, :, :steps]
        place = np.arange(steps)
        targets[place == lengths[:, :, None]] = vocabulary.eos_id
        inputs = np.concatenate([np.full((*lengths.shape, 1), vocabulary.bos_id), targets[:, :, :-1]], 2)
        real = place < counts[:, :, None]  # [B, Q, T], eos included
        captions_per_step = real.any(0).sum(0)  # [T]
        read = np.arange(lengths.shape[1])[None, :] < captions_per_step[:, None]  # [T, Q]
        chosen = real.transpose(2, 1, 0)[read]  # [S, B]
        return cls(
            torch.from_numpy(np.ascontiguousarray(inputs.transpose(2, 1, 0)[read])),
            tuple(captions_per_step.tolist()),
            torch.from_numpy(targets.transpose(2, 1, 0)[read][chosen]),
            torch.from_numpy(np.flatnonzero(chosen)),
        )

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """Move the tensors to a device."""
        return type(self)(
            self.inputs.to(device, non_blocking=non_blocking),
            self.captions_per_step,
            self.targets.to(device, non_blocking=non_blocking),
            self.positions.to(device, non_blocking=non_blocking),
        )
