"""Splits that keep the pictures of COCO's evaluation out of a detector's training.

Visual Genome took half of its pictures from COCO: a detector trained on all of them has seen the test pictures of
captions and VQA. Lists as those of the release of Anderson et al. 2018 (karpathy_val_images.txt,
karpathy_test_images.txt) say which these are.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.prepare.pictures import split_by_hash
from store_schema.errors import InputNotFoundError, TableError, UsageError

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"(\d+)(?:\.\w+)?$")


@dataclass(frozen=True)
class HeldOut:
    """Numbers in COCO of pictures that are not for training; empty where no list was given."""

    val: frozenset[int] = frozenset()
    test: frozenset[int] = frozenset()

    @classmethod
    def read(cls, val: Path | None, test: Path | None) -> "HeldOut":
        """Read the lists that are given.

        Errors: `InputNotFoundError`, `TableError` for a line without a number; `UsageError` for a picture on both.
        """
        lists = cls(*(frozenset() if path is None else _read_numbers(path) for path in (val, test)))
        if both := sorted(lists.val & lists.test):
            raise UsageError(f"{len(both)} pictures stand on both lists {val} and {test}, first {both[0]}")
        return lists

    def splits(
        self, coco_ids: Mapping[str, int | None], *, given: Mapping[str, str] | None = None, val_share: float
    ) -> dict[str, str]:
        """The split of each picture by its path: of the lists, else as given, else by hash.

        Args:
            coco_ids: of each path the number in COCO, or None.
            given: splits that the data set itself states.
            val_share: of the pictures without any split, so many become the validation part; none where there is a
                list of validation pictures.
        """
        listed = {
            path: "val" if number in self.val else "test"
            for path, number in coco_ids.items()
            if number in self.val or number in self.test
        }
        known = dict(given or {}) | listed
        rest = [path for path in coco_ids if path not in known]
        share = 0.0 if self.val else val_share
        return split_by_hash(rest, val_share=share) | known

    def __len__(self) -> int:
        return len(self.val) + len(self.test)


def _read_numbers(path: Path) -> frozenset[int]:
    """The number at the end of each line: "val2014/COCO_val2014_000000011169.jpg 11169", or a file's name."""
    if not path.is_file():
        raise InputNotFoundError(f"a list of pictures expected at {path}, there is none")
    numbers = set()
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        number = _NUMBER.search(line.strip())
        if number is None:
            raise TableError(
                f"{path}: line {place}: a picture's number in COCO expected at its end, got {line!r}"
            )
        numbers.add(int(number[1]))
    return frozenset(numbers)
