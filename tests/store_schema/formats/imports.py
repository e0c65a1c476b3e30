"""Import for tests: the settings that keep every bit, and a comparison with what a script wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from store_schema.formats.importing import ImportConfig, ImportSummary, import_regions
from store_schema.formats.protocol import ReadOptions
from store_schema.reader import RegionStore
from tests.store_schema.formats.foreign import Regions

TRUSTED = ReadOptions(trust_pickle=True)


def config(**changes: Any) -> ImportConfig:
    settings: dict[str, Any] = {"feature_dtype": "float32", "block_size": 8, "detector": "tests"}
    return ImportConfig(**(settings | changes))


def imported(path: Path, store: Path, **changes: Any) -> RegionStore:
    """A store of one file or folder, whose format is guessed."""
    summarised(path, store, **changes)
    return RegionStore.open(store)


def summarised(path: Path, store: Path, **changes: Any) -> ImportSummary:
    return import_regions([path], store, config(**changes))


def assert_holds(
    store: RegionStore,
    pictures: Sequence[Regions],
    *,
    by: str,
    objects: bool = False,
    attributes: bool = False,
) -> None:
    """The store has exactly these pictures, bit for bit. `by`: what their identifiers are, "name" or "number"."""
    assert set(store.image_ids) == {str(getattr(p, by)) for p in pictures}
    for p in pictures:
        record = store.image(str(getattr(p, by)))
        assert (record.width, record.height) == (p.width, p.height)
        assert record.boxes.tobytes() == p.boxes.tobytes()
        assert record.features.tobytes() == p.features.tobytes()
        for has, ids, scores, expected, expected_scores in (
            (objects, record.object_ids, record.object_scores, p.objects, p.object_scores),
            (attributes, record.attribute_ids, record.attribute_scores, p.attributes, p.attribute_scores),
        ):
            if has:
                assert ids is not None
                assert scores is not None
                assert np.array_equal(ids, expected)
                assert scores.tobytes() == expected_scores.tobytes()
            else:
                assert ids is None
