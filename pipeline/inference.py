"""Regions for a trained model's use on new pictures: from a store, or made by stage one from picture files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.extraction import extract_records, spec_named_by
from stage1_detect.images import load_image
from stage1_detect.sources import find_images
from stage1_detect.spec import ExtractorSpec
from stage2_models.loading.batch import RegionBatch
from stage2_models.region_records import batch_of_records
from stage2_models.vqa_inference import read_regions
from store_schema.errors import UsageError
from store_schema.reader import RegionStore
from store_schema.remote import StorePath


@dataclass(frozen=True)
class Pictures:
    """Some pictures with their regions; paths is empty for pictures of a store."""

    image_ids: tuple[str, ...]
    regions: RegionBatch
    paths: tuple[Path, ...] = ()

    def draw_words(
        self, place: int, words: Sequence[str], attention: NDArray[np.float32], folder: Path
    ) -> None:
        """Save the attention of each word over a picture as FOLDER/<image_id>.png."""
        from pipeline.draw import draw_word_attention

        boxes = self._boxes(place)
        pixels = load_image(self.paths[place])
        self._save(place, draw_word_attention(pixels, boxes, words, attention[:, : len(boxes)]), folder)

    def draw_answer(
        self, place: int, logits: NDArray[np.float32], weights: NDArray[np.float32], folder: Path
    ) -> None:
        """Save the regions behind an answer as FOLDER/<image_id>.png."""
        from pipeline.draw import draw_answer

        self._save(
            place, draw_answer(load_image(self.paths[place]), self._boxes(place), logits, weights), folder
        )

    def _boxes(self, place: int) -> NDArray[np.float32]:
        boxes: NDArray[np.float32] = self.regions.boxes[place, : int(self.regions.num_regions[place])].numpy()
        return boxes

    def _save(self, place: int, picture: Any, folder: Path) -> None:  # noqa: ANN401  (Pillow is imported late)
        path = folder / f"{self.image_ids[place]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


@dataclass(frozen=True)
class StorePictures:
    """Pictures that a store has."""

    store: RegionStore
    image_ids: tuple[str, ...]

    def batches(self, size: int) -> Iterator[Pictures]:
        """Their regions, `size` pictures at a time."""
        for start in range(0, len(self.image_ids), size):
            ids = self.image_ids[start : start + size]
            yield Pictures(ids, read_regions(self.store, self.store.rows(ids)))


@dataclass(frozen=True)
class FilePictures:
    """Pictures in files; their regions are made as the model asks."""

    image_ids: tuple[str, ...]
    paths: tuple[Path, ...]
    spec: ExtractorSpec

    def batches(self, size: int) -> Iterator[Pictures]:
        """Their regions, `size` pictures at a time."""
        for start in range(0, len(self.paths), size):
            part = slice(start, start + size)
            records = extract_records(self.paths[part], self.image_ids[part], self.spec)
            yield Pictures(self.image_ids[part], batch_of_records(records), self.paths[part])


def inputs_of(
    info: Mapping[str, Any],
    check_store: Callable[[RegionStore], None],
    *,
    images: Sequence[Path],
    store: StorePath | None,
    ids: Sequence[str] | None,
    weights: str | None,
    boxes: str | None,
    device: str,
) -> StorePictures | FilePictures:
    """The pictures that a command names, in a store or in files, checked to fit the model.

    Args:
        info: the model's model.json.
        check_store: refuses a store of other features.
        images, store, ids, weights, boxes, device: as the command line has them.

    Errors: `UsageError` where both or neither of store and files are named; `StoreMismatchError`.
    """
    if store is not None:
        if images:
            raise UsageError("give picture files or --store, not both")
        opened = RegionStore.open(store)
        check_store(opened)
        return StorePictures(opened, tuple(ids if ids is not None else opened.image_ids))
    if ids is not None:
        raise UsageError("--ids names pictures of a store; give --store too")
    if not images:
        raise UsageError("name picture files, or a store with --store")
    sources = find_images(images)
    spec = spec_named_by(info, weights=weights, boxes=boxes, device=device)
    return FilePictures(tuple(s.image_id for s in sources), tuple(s.path for s in sources), spec)
