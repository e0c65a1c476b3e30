"""The trainable problem "vqa": what the trainer needs to train, judge, resume and rebuild a model.

Satisfies `pipeline.training.task.Task` by its shape; the trainer is not imported. A researcher can use
`build_vqa_task` with a loop of his own: `for batch in task.batches(epoch, 0): task.loss(batch, ...)`.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stage2_models.answers import AnswerVocabulary
from stage2_models.loader import Loader, build_loader
from stage2_models.loading.order import epoch_batches
from stage2_models.vocabulary import Vocabulary
from stage2_models.vqa import VqaModel, answer_loss
from stage2_models.vqa_batches import (
    EncodedQuestions,
    QuestionsByPicture,
    VqaBatch,
    encode_questions,
)
from stage2_models.vqa_config import VqaConfig
from stage2_models.vqa_data import VqaDataConfig, build_vocabularies, read_questions
from stage2_models.vqa_evaluation import evaluate_questions
from stage2_models.word_vectors import read_word_vectors
from store_schema.errors import UsageError
from store_schema.fingerprint import fingerprint
from store_schema.reader import RegionStore
from store_schema.remote import StorePath

logger = logging.getLogger(__name__)


def build_vqa_task(
    tables: Path,
    store: StorePath | None,
    *,
    model: VqaConfig,
    data: VqaDataConfig,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> "VqaTask":
    """Read the tables, collect vocabularies, and build a fresh model with the statistics of its features.

    The model's initial weights come from torch's global generator: seed it before.

    Args:
        tables: folder with the questions and answers tables.
        store: folder of the region store; None, and only then, for a question-only model.
        rank, world_size: this process's part of a distributed run.

    Errors: those of tables and store; `UsageError` where no question is left.
    """
    if (store is None) != model.question_only:
        raise UsageError(
            "a question-only model is trained without a store, every other with one; got question_only="
            f"{model.question_only} and store {store}"
        )
    regions = None if store is None else RegionStore.open(store)
    questions = read_questions(tables, data.train_split, regions)
    vocabulary, answers = build_vocabularies(questions, data)

    def encode(split: str) -> EncodedQuestions:
        read = questions if split == data.train_split else read_questions(tables, split, regions)
        return encode_questions(
            read,
            vocabulary,
            answers,
            max_length=data.max_question_length,
            tokeniser=data.tokeniser,
            store=regions,
        )

    train, held_out = encode(data.train_split), encode(data.eval_split)
    known = train.has_known_answer
    logger.info(
        "%s training questions, %s for evaluation, %s words, %s answers (they cover %.1f%% of the training questions)",
        len(train), len(held_out), len(vocabulary), len(answers), 100 * known.mean(),
    )  # fmt: skip
    if model.loss == "ce":  # without a known answer there is nothing to be sure of
        train = train.select(np.flatnonzero(known))
    network = VqaModel(
        model,
        feature_dim=0 if regions is None else regions.metadata.feature_dim,
        vocabulary_size=len(vocabulary),
        pad_id=vocabulary.pad_id,
        num_answers=len(answers),
    )
    if data.word_vectors:
        load_word_vectors(network, vocabulary, Path(data.word_vectors))
    if network.region_input is not None and network.region_input.statistics is not None:
        assert regions is not None
        assert train.rows is not None
        network.region_input.statistics.fit(regions, train.rows)
    return VqaTask(
        network.to(device),
        model,
        data,
        vocabulary,
        answers,
        train,
        held_out,
        regions,
        device,
        (rank, world_size),
    )


def load_word_vectors(network: VqaModel, vocabulary: Vocabulary, path: Path) -> None:
    """Let the word embedding begin with the vectors of a file; see `read_word_vectors` for its errors."""
    embedding = network.question.embedding
    vectors, found = read_word_vectors(path, vocabulary.words, embedding.embedding_dim)
    with torch.no_grad():
        embedding.weight.copy_(torch.from_numpy(vectors))
    logger.info(
        "word vectors of %s for %s of %s words, the others begin as zeros", path, found, len(vocabulary)
    )


class VqaTask:
    """A VQA model with its questions; made by `build_vqa_task`."""

    name = "vqa"
    best_metric = "accuracy"
    higher_is_better = True

    def __init__(
        self,
        model: VqaModel,
        config: VqaConfig,
        data: VqaDataConfig,
        vocabulary: Vocabulary,
        answers: AnswerVocabulary,
        train: EncodedQuestions,
        held_out: EncodedQuestions,
        store: RegionStore | None,
        device: torch.device,
        process: tuple[int, int],
    ) -> None:
        self.model: nn.Module = model
        self.config = config
        self.data = data
        self.vocabulary = vocabulary
        self.answers = answers
        self.train = train
        self.store = store
        self._network = model
        self._held_out = held_out.select(_spaced(len(held_out), data.max_eval_questions))
        self._train_sample = (
            train.select(_spaced(len(train), data.train_eval_questions))
            if data.train_eval_questions
            else None
        )
        self._device = device
        self._rank, self._world_size = process
        self._by_picture = None
        self.batch_size = data.batch_size
        """Samples in a batch of this process: questions, or pictures with all of theirs."""
        if data.by_picture and train.rows is not None:
            self._by_picture = QuestionsByPicture.of(train.rows)
            self.batch_size = self._by_picture.pictures_per_batch(data.batch_size)
        self._loader = self._build_loader()

    def identity(self) -> Mapping[str, str]:
        """Fingerprints of model, vocabulary, answers and features; dropout, which no weight depends on, may change."""
        identity = {
            "model": fingerprint(asdict(replace(self.config, dropout=0.0, attention_dropout=0.0))),
            "vocabulary": self.vocabulary.fingerprint(),
            "answers": fingerprint(self.answers.answers),
        }
        if self.store is not None:
            identity["store"] = self.store.features_fingerprint
        return identity

    def describe(self) -> Mapping[str, Any]:
        """All that `load_vqa` needs beside the weights."""
        metadata = None if self.store is None else self.store.metadata
        return {
            "task": self.name,
            "model": asdict(self.config),
            "max_question_length": self.data.max_question_length,
            "tokeniser": self.data.tokeniser,
            "vocabulary": self.vocabulary.to_json(),
            "answers": list(self.answers.answers),
            "feature_dim": 0 if metadata is None else metadata.feature_dim,
            "features_fingerprint": None if self.store is None else self.store.features_fingerprint,
            "detector": None if metadata is None else dict(metadata.detector),
            "selection": None if metadata is None else dict(metadata.selection),
            "box_source": None if metadata is None else metadata.box_source,
        }

    def num_batches(self) -> int:
        """Batches in one epoch, on this rank."""
        return len(self._order(0)) if self._loader is None else len(self._loader)

    def batches(self, epoch: int, start: int) -> Iterator[VqaBatch]:
        """The epoch's batches of training questions from batch `start` on."""
        if self._loader is None:
            for indices in self._order(epoch)[start:]:
                yield self.train.batch(indices, None)
            return
        for loaded in self._loader.epoch(epoch, start):
            if self._by_picture is None:
                yield self.train.batch(loaded.indices, loaded.regions)
            else:
                indices, pictures = self._by_picture.questions(loaded.indices)
                yield self.train.batch(indices, loaded.regions, pictures)

    def batch_ids(self, batch: VqaBatch) -> list[str]:
        """The question_ids of a batch."""
        return [self.train.questions.answered[index].question_id for index in batch.indices]

    def loss(self, batch: VqaBatch, *, step: int, epoch: int) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """The loss summed over the batch's questions, their number, and the batch's accuracy (soft score)."""
        output = self.model(batch.token_ids, batch.lengths, batch.regions, batch.pictures)
        total = answer_loss(output.answer_logits, batch.labels, batch.scores, self.config.loss)
        best = output.answer_logits.detach().argmax(1, keepdim=True)  # [B, 1]
        # An unused place in `labels` holds 0 with score 0, so it adds nothing where the answer is label 0.
        accuracy = ((batch.labels == best) * batch.scores).sum(1).mean()
        return total, len(batch.indices), {"accuracy": accuracy}

    def evaluate(self) -> Mapping[str, float]:
        """Official accuracy overall and by question type ("accuracy/<type>"), mean answer loss.

        The same for a fixed sample of the training questions, with "train_" before each name: binding comes
        suddenly and type by type, and shows there first.
        """
        metrics = self._evaluate(self._held_out, "")
        if self._train_sample is not None:
            metrics |= self._evaluate(self._train_sample, "train_")
        return metrics

    def _evaluate(self, encoded: EncodedQuestions, prefix: str) -> dict[str, float]:
        result = evaluate_questions(
            self._network,
            encoded,
            self.answers,
            self.store,
            device=self._device,
            batch_size=self.data.eval_batch_size,
        )
        by_type = sorted(result.scores.by_question_type.items())
        return {
            f"{prefix}accuracy": result.scores.accuracy,
            f"{prefix}answer_loss": result.loss,
            **{f"{prefix}accuracy/{kind}": value for kind, value in by_type},
        }

    def _build_loader(self) -> Loader | None:
        if self.store is None or self.train.rows is None:
            return None
        return build_loader(
            self.store,
            self.train.rows if self._by_picture is None else self._by_picture.rows,
            batch_size=self.batch_size,
            seed=self.data.seed,
            workers=self.data.num_workers,
            pin=self.data.pin,
            rank=self._rank,
            world_size=self._world_size,
            lengths=self._lengths(),
        )

    def _order(self, epoch: int) -> list[NDArray[np.int64]]:
        """The batches of a question-only model: the same order as a loader's."""
        return epoch_batches(
            len(self.train),
            batch_size=self.data.batch_size,
            seed=self.data.seed,
            epoch=epoch,
            rank=self._rank,
            world_size=self._world_size,
            lengths=self._lengths(),
        )

    def _lengths(self) -> NDArray[np.int64] | None:
        return self.train.lengths if self.data.by_length else None


def _spaced(total: int, largest: int) -> NDArray[np.int64]:
    """Places of at most `largest` of `total`, evenly spaced; 0: all."""
    count = min(total, largest) if largest else total
    return np.linspace(0, total - 1, count).round().astype(np.int64)
