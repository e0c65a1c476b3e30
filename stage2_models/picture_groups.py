"""Which questions of a batch are about the same picture, so that its regions are read and projected once.

Questions lie one after the other, [B, ...]; for what meets the regions they are laid out picture by picture,
[U, Q, ...], with zeros where a picture has fewer than Q. Legend: B questions, U pictures, Q most questions of one.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class PictureGroups:
    """Where each question lies among the pictures' questions."""

    pictures: Tensor
    """[B] int64, 0 to U - 1."""
    places: Tensor
    """[B] int64, which question of its picture it is."""
    num_pictures: int
    most: int

    @classmethod
    def of(cls, pictures: Tensor, num_pictures: int) -> Self:
        """Group questions by their pictures [B]."""
        order = pictures.argsort(stable=True)
        counts = torch.bincount(pictures, minlength=num_pictures)
        starts = counts.cumsum(0) - counts
        places = torch.empty_like(pictures)
        places[order] = torch.arange(len(pictures), device=pictures.device) - starts[pictures[order]]
        return cls(pictures, places, num_pictures, int(counts.max()) if len(pictures) else 1)

    @classmethod
    def one_each(cls, num_pictures: int, device: torch.device) -> Self:
        """A question to every picture, in the same order."""
        pictures = torch.arange(num_pictures, device=device)
        return cls(pictures, torch.zeros_like(pictures), num_pictures, 1)

    def by_picture(self, values: Tensor) -> Tensor:
        """Lay [B, ...] out as [U, Q, ...]; zeros where a picture has no more questions."""
        if self.most == 1 and len(self.pictures) == self.num_pictures:
            return values.unsqueeze(1)
        empty = values.new_zeros(self.num_pictures, self.most, *values.shape[1:])
        return empty.index_put((self.pictures, self.places), values)

    def by_question(self, values: Tensor) -> Tensor:
        """Read [U, Q, ...] back as [B, ...]."""
        if self.most == 1 and len(self.pictures) == self.num_pictures:
            return values.squeeze(1)
        return values[self.pictures, self.places]

    def spread(self, values: Tensor) -> Tensor:
        """Give each question its picture's value: [U, ...] to [B, ...]."""
        return values if self.most == 1 and len(self.pictures) == self.num_pictures else values[self.pictures]
