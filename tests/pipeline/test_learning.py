"""Models through the real trainer learn what can be learned: captions by heart, and to please their own reward."""

import random
from pathlib import Path

import numpy as np
import pytest

from pipeline import stages
from pipeline.training.runs import read_metrics
from stage2_models.caption_inference import load_captioner
from stage2_models.caption_metrics import smallest_token_loss
from store_schema.metadata import StoreMetadata
from store_schema.reader import RegionStore
from store_schema.records import ImageRecord
from store_schema.tables import write_table
from store_schema.writer import StoreWriter, write_block
from tests.stage2_models.caption_world import write_world

PICTURES, CAPTIONS, REGIONS, FEATURES, WORDS = 32, 5, 4, 64, 120


def _write_pictures(folder: Path) -> tuple[Path, Path]:
    """Pictures of random features with five captions each that share beginnings: no model can be sure of them."""
    rng, numbers = random.Random(0), np.random.default_rng(0)
    names = [f"p{number}" for number in range(PICTURES)]
    tables, store = folder / "tables", folder / "store"
    images = [{"image_id": n, "path": f"{n}.jpg", "width": 9, "height": 9, "split": "train"} for n in names]
    captions = [
        {
            "image_id": name,
            "caption_id": f"{name}-{number}",
            "text": " ".join(f"w{rng.randrange(3 if place < 2 else WORDS)}" for place in range(rng.randint(5, 14))),
            "split": "train",
        }
        for name in names
        for number in range(CAPTIONS)
    ]  # fmt: skip
    write_table(tables, "images", images)
    write_table(tables, "captions", captions)
    metadata = StoreMetadata(
        feature_dim=FEATURES, max_regions=REGIONS, min_regions=0, box_source="given",
        detector={"name": "drawn", "fingerprint": "d1", "path": "runs/d1"}, selection={}, block_size=PICTURES,
    )  # fmt: skip
    boxes = np.array([[1, 1, 5, 5]] * REGIONS, np.float32)
    with StoreWriter.open(store, metadata) as writer:
        for block in writer.plan(names):
            records = [
                ImageRecord(name, 9, 9, boxes, numbers.normal(size=(REGIONS, FEATURES)).astype(np.float16))
                for name in block.image_ids
            ]
            writer.commit(block, write_block(store, metadata, block, records))
    return tables, store


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_captions_are_learned_by_heart_down_to_the_smallest_possible_loss(tmp_path: Path) -> None:
    """The shipped configuration, a smaller model: within .03 nats a word of what five captions a picture allow."""
    tables, store = _write_pictures(tmp_path)
    sets = (
        "model.hidden_dim=128", "training.epochs=250", "training.num_threads=1", "training.device=cpu",
        "data.num_workers=0", "training.eval_every_epochs=0",
    )  # fmt: skip
    options = stages.TrainOptions(config="caption-overfit", sets=sets)
    stages.train_captioner(tables, store, tmp_path / "run", options)
    result = load_captioner(tmp_path / "run").evaluate(tables, RegionStore.open(store), "train")
    floor = smallest_token_loss(result.references.values())
    assert floor > 0.1
    assert floor - 1e-6 <= result.token_loss < floor + 0.03
    by_heart = [caption.words in result.references[name] for name, caption in result.captions.items()]
    assert sum(by_heart) >= PICTURES - 1


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["greedy", "other_samples"])
def test_self_critical_training_raises_the_reward_of_its_samples(tmp_path: Path, baseline: str) -> None:
    """From a model of short cross entropy: what it draws, and what it writes greedily, score higher in the end.

    With the greedy baseline most samples are below it: that must not teach the model words that are never drawn.
    """
    world = write_world(tmp_path)
    sets = (
        "model.hidden_dim=32", "model.embed_dim=16", "model.attention_dim=16", "data.batch_size=8",
        "data.captions_per_image=2", "data.max_length=8", "data.num_workers=0", "data.eval_split=train",
        "training.num_threads=1", "training.device=cpu", "training.epochs=65", "training.lr=0.01",
        "training.schedule=constant", "training.warmup=0", "training.log_every=1",
        "training.eval_every_epochs=5",
        "losses.self_critical_from_epoch=15", "losses.self_critical_lr=0.01", "losses.score_workers=0",
        f"losses.baseline={baseline}", "losses.samples_per_image=20",
    )  # fmt: skip
    stages.train_captioner(world.tables, world.store, tmp_path / "run", stages.TrainOptions(sets=sets))
    drawn = read_metrics(tmp_path / "run", "train")["sample_cider_d"].dropna()
    assert len(drawn) == 50
    assert drawn.iloc[-5:].mean() > 1.5 * drawn.iloc[:5].mean()
    written = read_metrics(tmp_path / "run", "eval").set_index("epoch")["cider_d"]
    assert written.iloc[-1] > written[15]
