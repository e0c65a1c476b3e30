"""The trainable problem "caption": what the trainer needs to train, judge, resume and rebuild a captioner.

Satisfies `pipeline.training.task.Task` by its shape; the trainer is not imported. A researcher can use
`build_caption_task` with a loop of his own: `for batch in task.batches(epoch, 0): task.loss(batch, ...)`.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stage2_models.caption_data import (
    CaptionBatch,
    CaptionDataConfig,
    EncodedCaptions,
    encode_captions,
    read_captions,
)
from stage2_models.caption_evaluation import evaluate_captions
from stage2_models.caption_losses import CaptionLossConfig, smoothed_cross_entropy
from stage2_models.captioner import Captioner, CaptionerConfig, build_captioner
from stage2_models.decoding_config import DecodingConfig
from stage2_models.loader import build_loader
from stage2_models.scheduled_sampling import mix_in_own_words
from stage2_models.self_critical import SelfCritical
from stage2_models.vocabulary import Vocabulary
from store_schema.fingerprint import fingerprint
from store_schema.reader import RegionStore
from store_schema.remote import StorePath

__all__ = ["CaptionDataConfig", "CaptionLossConfig", "CaptionTask", "build_caption_task"]

logger = logging.getLogger(__name__)


def build_caption_task(
    tables: Path,
    store: StorePath,
    *,
    model: CaptionerConfig,
    data: CaptionDataConfig,
    losses: CaptionLossConfig = CaptionLossConfig(),  # noqa: B008  (frozen)
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> "CaptionTask":
    """Read captions and store, collect the vocabulary, and build a fresh captioner with its features' statistics.

    The model's initial weights come from torch's global generator: seed it before.

    Args:
        tables: folder with the captions table, with training and evaluation splits.
        store: folder or URL of the region store.
        rank, world_size: this process's part of a distributed run.

    Errors: those of table and store; `UsageError` where a split has no captions or the store lacks its pictures.
    """
    regions = RegionStore.open(store)
    train = read_captions(tables, data.train_split, regions, max_missing_share=data.max_missing_share)
    held_out = read_captions(tables, data.eval_split, regions, max_missing_share=data.max_missing_share)
    if 0 < data.max_eval_images < len(held_out):
        spaced = np.linspace(0, len(held_out) - 1, data.max_eval_images)
        held_out = held_out.select(spaced.round().astype(np.int64))
    vocabulary = Vocabulary.build(train.all_words(), min_count=data.min_word_count)
    encoded = encode_captions(train, vocabulary, regions, max_length=data.max_length)
    encoded_held_out = encode_captions(held_out, vocabulary, regions, max_length=data.max_length)
    logger.info(
        "%s training pictures with %s captions, %s pictures for evaluation, %s words",
        len(encoded), len(encoded.lengths), len(encoded_held_out), len(vocabulary),
    )  # fmt: skip
    network = build_captioner(
        model, feature_dim=regions.metadata.feature_dim, vocabulary_size=len(vocabulary)
    )
    if network.region_input.statistics is not None:
        network.region_input.statistics.fit(regions, encoded.rows)
    network.to(device)
    return CaptionTask(
        network,
        model,
        data,
        losses,
        vocabulary,
        encoded,
        encoded_held_out,
        regions,
        device,
        (rank, world_size),
    )


class CaptionTask:
    """A captioner with its captions; made by `build_caption_task`."""

    name = "caption"
    best_metric = "cider_d"
    higher_is_better = True

    def __init__(
        self,
        model: Captioner,
        config: CaptionerConfig,
        data: CaptionDataConfig,
        losses: CaptionLossConfig,
        vocabulary: Vocabulary,
        train: EncodedCaptions,
        held_out: EncodedCaptions,
        store: RegionStore,
        device: torch.device,
        process: tuple[int, int],
    ) -> None:
        self.model: nn.Module = model
        self.config = config
        self.data = data
        self.losses = losses
        self.batch_size = data.batch_size
        self.vocabulary = vocabulary
        self.train = train
        self.held_out = held_out
        self.store = store
        self._network = model
        self._self_critical: SelfCritical | None = None
        self._device = device
        rank, world_size = process
        self._loader = build_loader(
            store,
            train.rows,
            batch_size=data.batch_size,
            seed=data.seed,
            workers=data.num_workers,
            pin=data.pin,
            rank=rank,
            world_size=world_size,
        )

    def identity(self) -> Mapping[str, str]:
        """Fingerprints of model, vocabulary and features; dropout, which no weight depends on, may change."""
        return {
            "model": fingerprint(asdict(replace(self.config, dropout=0.0))),
            "vocabulary": self.vocabulary.fingerprint(),
            "store": self.store.features_fingerprint,
        }

    def describe(self) -> Mapping[str, Any]:
        """All that `load_captioner` needs beside the weights."""
        metadata = self.store.metadata
        return {
            "task": self.name,
            "model": asdict(self.config),
            "max_length": self.data.max_length,
            "vocabulary": self.vocabulary.to_json(),
            "feature_dim": metadata.feature_dim,
            "features_fingerprint": self.store.features_fingerprint,
            "detector": dict(metadata.detector),
            "selection": dict(metadata.selection),
            "box_source": metadata.box_source,
        }

    def num_batches(self) -> int:
        """Batches in one epoch, on this rank."""
        return len(self._loader)

    def batches(self, epoch: int, start: int) -> Iterator[CaptionBatch]:
        """The epoch's batches of training pictures from batch `start` on."""
        for loaded in self._loader.epoch(epoch, start):
            tokens = self.train.tokens(
                loaded.indices,
                self.vocabulary,
                captions_per_image=self.data.captions_per_image,
                epoch=epoch,
            )
            yield CaptionBatch(loaded.indices, loaded.regions, tokens)

    def batch_ids(self, batch: CaptionBatch) -> list[str]:
        """The image_ids of a batch."""
        return [self.train.captions.image_ids[index] for index in batch.indices]

    def learning_rate(self, epoch: int) -> float | None:
        """The rate of an epoch of the second phase, where it has one of its own; the trainer's schedule elsewhere."""
        own = self.losses.self_critical_lr
        return own if own and self.losses.is_self_critical(epoch) else None

    def loss(self, batch: CaptionBatch, *, step: int, epoch: int) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """The loss of the epoch's phase summed over tokens, their number, and parts for the log.

        Cross entropy: over the captions' tokens, ends included, with the share predicted rightly. Self-critical: over
        the tokens of the samples, with the mean CIDEr-D of the samples and of the greedy captions.
        """
        if self.losses.is_self_critical(epoch):
            return self._second_phase().loss(batch)
        logits = self._predict(batch, self.losses.own_word_probability(epoch))
        targets = batch.tokens.targets
        total = smoothed_cross_entropy(logits, targets, self.losses.label_smoothing)
        accuracy = (logits.detach().argmax(1) == targets).float().mean()
        return total, len(targets), {"token_accuracy": accuracy}

    def _second_phase(self) -> SelfCritical:
        """Made when it begins: document frequencies and scoring processes."""
        if self._self_critical is None:
            self._self_critical = SelfCritical(
                self._network, self.vocabulary, self.train, self.losses, max_length=self.data.max_length
            )
        return self._self_critical

    def _predict(self, batch: CaptionBatch, own_word_probability: float) -> Tensor:
        """Logits [M, V] of the batch's tokens; with scheduled sampling, after some words of the model's own."""
        network, tokens = self._network, batch.tokens
        if own_word_probability == 0.0:
            logits: Tensor = self.model(batch.regions, tokens)
            return logits
        encoded = network.encode(batch.regions)
        masks = network.draw_masks(tokens.inputs.numel(), encoded)
        inputs = mix_in_own_words(network, encoded, tokens, masks, own_word_probability)
        outputs = network.outputs(encoded, inputs, tokens.captions_per_step, masks)
        return network.logits(outputs[tokens.positions])

    def evaluate(self) -> Mapping[str, float]:
        """CIDEr-D, BLEU-1..4, ROUGE-L of the captions of the evaluation split, and the loss of a token."""
        evaluation = evaluate_captions(
            self._network,
            self.held_out,
            self.vocabulary,
            self.store,
            device=self._device,
            batch_size=self.data.eval_batch_size,
            decoding=DecodingConfig(beam_size=self.data.eval_beam_size, max_length=self.data.max_length),
        )
        return evaluation.metrics()
