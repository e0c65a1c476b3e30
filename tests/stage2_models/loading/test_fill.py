"""A slot is filled with the store's bytes, the first time (checked) and the second (not), and padded with zeros."""

import numpy as np
import pytest

from stage2_models.loading.buffers import SlotLayout
from stage2_models.loading.fill import fill
from store_schema.reader import RegionStore


@pytest.mark.parametrize("kind", ["store", "adaptive_store"])
def test_a_slot_holds_the_same_each_time_whatever_it_held_before(
    kind: str, request: pytest.FixtureRequest
) -> None:
    store = RegionStore.open(request.getfixturevalue(kind).path)  # a new object: nothing is checked yet
    metadata = store.metadata
    layout = SlotLayout(
        batch_size=len(store), max_regions=metadata.max_regions, feature_dim=metadata.feature_dim,
        feature_dtype=metadata.feature_dtype,
    )  # fmt: skip
    rows = np.random.default_rng(0).permutation(store.all_rows)
    for junk in (0, 255):
        slot = np.full(layout.slot_bytes, junk, np.uint8)
        arrays = layout.arrays(slot, len(rows), fill(store, rows, layout, slot))
        for row, features, boxes in zip(rows.tolist(), arrays.features, arrays.boxes, strict=True):
            picture = store.image(store.image_id_of(row))
            num = len(picture.boxes)
            np.testing.assert_array_equal(features[:num], picture.features)
            np.testing.assert_array_equal(boxes[:num], picture.boxes)
            assert not features[num:].any()
            assert not boxes[num:].any()
