"""Captions by retrieval: of the right picture, and the caption that the others agree with."""

from pathlib import Path

import numpy as np

from stage2_models.caption_data import Captions
from stage2_models.cider import CiderD
from stage2_models.retrieval import retrieve_captions
from store_schema.reader import RegionStore
from tests.stage2_models.caption_world import IMAGE_IDS, THINGS, write_store


def _captions(places: range) -> Captions:
    """Three captions a picture: two that agree, and one of its own between them."""
    words = [
        (("a", color, noun), ("nothing", "like", "it"), ("a", color, noun, "here"))
        for color, noun in (THINGS[place] for place in places)
    ]
    return Captions(tuple(IMAGE_IDS[place] for place in places), tuple(words))


def test_a_picture_gets_the_caption_of_the_training_picture_with_its_features(tmp_path: Path) -> None:
    """Pictures 0 to 11 are all different things; each is asked for among all of them."""
    store = RegionStore.open(write_store(tmp_path / "store", IMAGE_IDS))
    found = retrieve_captions(_captions(range(12)), store, tuple(IMAGE_IDS), store, pictures=1)
    for image_id, (color, noun) in zip(IMAGE_IDS, THINGS, strict=True):
        assert found[image_id] in {("a", color, noun), ("a", color, noun, "here")}


def test_the_two_stores_may_differ_and_the_nearest_shares_what_can_be_shared(tmp_path: Path) -> None:
    """Of pictures never seen before the nearest has the same colour or the same noun."""
    train = RegionStore.open(write_store(tmp_path / "train", IMAGE_IDS[:8]))
    held_out = RegionStore.open(write_store(tmp_path / "held-out", IMAGE_IDS[8:]))
    found = retrieve_captions(_captions(range(8)), train, tuple(IMAGE_IDS[8:]), held_out, pictures=1)
    for place, words in zip(range(8, 12), found.values(), strict=True):
        assert set(words) & set(THINGS[place])


def test_of_several_pictures_captions_the_one_that_most_others_agree_with_is_taken(tmp_path: Path) -> None:
    store = RegionStore.open(write_store(tmp_path / "store", IMAGE_IDS))
    train = Captions(
        tuple(IMAGE_IDS[:4]),
        ((("a", "red", "cube"),), (("odd", "words"),), (("a", "red", "cube", "here"),), (("other", "ones"),)),
    )
    found = retrieve_captions(train, store, tuple(IMAGE_IDS[4:]), store, pictures=4)
    assert set(found.values()) <= {("a", "red", "cube"), ("a", "red", "cube", "here")}


def test_agreement_is_the_mean_score_against_each_other_caption() -> None:
    texts = [["a", "dog", "runs"], ["a", "dog", "sits"], ["two", "dogs"], ["a", "dog", "runs"]]
    others = [[text for index, text in enumerate(texts) if index != place] for place in range(4)]
    scorer = CiderD(others, with_end=False)
    encoded = [scorer.encode(words) for words in texts]
    np.testing.assert_array_equal(scorer.agreement(encoded), scorer.score(range(4), encoded))
