"""A split's questions as a few arrays, and batches gathered from them by the loader's indices.

Legend: Q questions, B batch, U pictures of a batch, P pictures in all, T words, M known answers of a question.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage2_models.answers import AnswerVocabulary, normalise_answer
from stage2_models.loader import RegionBatch, build_loader
from stage2_models.loading.order import epoch_batches
from stage2_models.vocabulary import Vocabulary
from stage2_models.vqa_data import Questions, QuestionTokeniser, question_words
from store_schema.reader import RegionStore


@dataclass
class VqaBatch:
    """A batch of questions with the regions of their pictures; None for a question-only model."""

    indices: NDArray[np.int64]
    """[B], places in the question set."""
    token_ids: Tensor
    """[B, T] int64, T the most words in this batch."""
    lengths: Tensor
    """[B] int64."""
    labels: Tensor
    """[B, M] int64, the known answers; 0 where there are fewer."""
    scores: Tensor
    """[B, M] float32, their soft scores; 0 where there are fewer."""
    regions: RegionBatch | None
    """Of U pictures: B in the questions' order, or those that `pictures` points to."""
    pictures: Tensor | None = None
    """[B] int64, which picture each question is about; None where every question has its own copy."""

    def pin_memory(self) -> Self:
        """Copy into page-locked memory what does not lie in it yet. Needs CUDA."""
        return self._mapped(lambda value: value.pin_memory())

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """Move everything but the indices to a device."""
        return self._mapped(lambda value: value.to(device, non_blocking=non_blocking))

    def _mapped(self, move: Any) -> Self:  # noqa: ANN401 - tensors and RegionBatch share the two methods
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(
            **{
                name: value if name == "indices" or value is None else move(value)
                for name, value in values.items()
            }
        )


@dataclass(frozen=True, kw_only=True)
class EncodedQuestions:
    """A split's questions as arrays, and the store rows of their pictures."""

    questions: Questions
    token_ids: NDArray[np.int64]
    """[Q, T] padded on the right."""
    lengths: NDArray[np.int64]
    """[Q]."""
    labels: NDArray[np.int64]
    """[Q, M], known answers, 0 where there are fewer."""
    scores: NDArray[np.float32]
    """[Q, M], their soft scores, 0 where there are fewer."""
    rows: NDArray[np.int64] | None
    """[Q], None without a store."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def has_known_answer(self) -> NDArray[np.bool_]:
        """[Q], whether the answer vocabulary has any of the question's answers."""
        known: NDArray[np.bool_] = np.count_nonzero(self.scores, axis=1) > 0
        return known

    def select(self, places: NDArray[np.int64]) -> "EncodedQuestions":
        """Keep the questions at these places, in this order."""
        return EncodedQuestions(
            questions=self.questions.select(places),
            token_ids=self.token_ids[places],
            lengths=self.lengths[places],
            labels=self.labels[places],
            scores=self.scores[places],
            rows=None if self.rows is None else self.rows[places],
        )

    def batch(
        self,
        indices: NDArray[np.int64],
        regions: RegionBatch | None,
        pictures: NDArray[np.int64] | None = None,
    ) -> VqaBatch:
        """Put the questions at `indices` [B] and the regions of their pictures into a batch.

        Args:
            regions: of the questions' pictures, in their order, or those that `pictures` [B] points to.
        """
        lengths = self.lengths[indices]
        num_words = max(int(lengths.max(initial=0)), 1)
        return VqaBatch(
            indices=indices,
            token_ids=torch.from_numpy(self.token_ids[indices, :num_words]),
            lengths=torch.from_numpy(lengths),
            labels=torch.from_numpy(self.labels[indices]),
            scores=torch.from_numpy(self.scores[indices]),
            regions=regions,
            pictures=None if pictures is None else torch.from_numpy(pictures),
        )


@dataclass(frozen=True)
class QuestionsByPicture:
    """The questions of every picture, so that a loader can go over pictures."""

    rows: NDArray[np.int64]
    """[P], the store's rows, each once, ascending."""
    order: NDArray[np.int64]
    """[Q], the questions picture by picture."""
    starts: NDArray[np.int64]
    """[P + 1], where each picture's questions begin in `order`."""

    @classmethod
    def of(cls, rows: NDArray[np.int64]) -> Self:
        """Group questions by the rows [Q] of their pictures."""
        order = np.argsort(rows, kind="stable")
        unique, starts = np.unique(rows[order], return_index=True)
        return cls(unique, order, np.append(starts, len(rows)))

    def pictures_per_batch(self, batch_size: int) -> int:
        """How many pictures have `batch_size` questions, on average; at least one."""
        return max(1, round(batch_size * len(self.rows) / len(self.order)))

    def questions(self, pictures: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All questions of some pictures [U]: their places in the split [B], and the picture of each, 0 to U - 1."""
        counts = self.starts[pictures + 1] - self.starts[pictures]
        chosen = np.concatenate([self.order[self.starts[p] : self.starts[p + 1]] for p in pictures])
        return chosen, np.repeat(np.arange(len(pictures)), counts)


def encode_questions(
    questions: Questions,
    vocabulary: Vocabulary,
    answers: AnswerVocabulary,
    *,
    max_length: int,
    tokeniser: QuestionTokeniser,
    store: RegionStore | None,
) -> EncodedQuestions:
    """Turn words and answers into numbers and find the pictures' rows.

    Answers are normalised before they are looked up and scored. A question none of whose answers is known
    has scores of 0 only.
    """
    words = [question_words(text, tokeniser) for text in questions.texts]
    token_ids, lengths = vocabulary.encode_padded(words, max_length)
    given = [question.answers for question in questions.answered]
    target_of = {  # the same answers come often: most questions have one of a few
        texts: answers.soft_target([normalise_answer(text) for text in texts]) for texts in set(given)
    }
    targets = [target_of[texts] for texts in given]
    most = max((len(target) for target in targets), default=0)
    labels = np.zeros((len(targets), max(most, 1)), np.int64)
    scores = np.zeros(labels.shape, np.float32)
    for place, target in enumerate(targets):
        labels[place, : len(target)] = list(target)
        scores[place, : len(target)] = list(target.values())
    return EncodedQuestions(
        questions=questions,
        token_ids=token_ids,
        lengths=lengths,
        labels=labels,
        scores=scores,
        rows=None if store is None else store.rows(questions.image_ids),
    )


def question_batches(
    encoded: EncodedQuestions, store: RegionStore | None, *, batch_size: int
) -> Iterator[VqaBatch]:
    """Give all questions once, read in this process, picture by picture; for evaluation.

    `batch.indices` says which they are; batches have `batch_size` questions on average.
    """
    if store is None or encoded.rows is None:
        for indices in epoch_batches(len(encoded), batch_size=batch_size, seed=0, epoch=0, shuffle=False):
            yield encoded.batch(indices, None)
        return
    grouped = QuestionsByPicture.of(encoded.rows)
    size = grouped.pictures_per_batch(batch_size)
    with build_loader(store, grouped.rows, batch_size=size, seed=0, shuffle=False, workers=0) as loader:
        for loaded in loader.epoch(0):
            indices, pictures = grouped.questions(loaded.indices)
            yield encoded.batch(indices, loaded.regions, pictures)
