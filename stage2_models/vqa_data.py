"""Questions and answers of the tables, encoded once for training and evaluation.

Reads the `questions` and `answers` tables and says what is left out and why: questions without answers,
questions on pictures that the store does not have. Everything of a split lies in a few arrays; a batch
gathers from them by the loader's indices. Legend: Q questions, B batch, T words, M known answers of a question.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage2_models.answers import AnswerVocabulary, normalise_answer
from stage2_models.loader import DEFAULT_WORKERS, RegionBatch, build_loader
from stage2_models.loading.order import epoch_batches
from stage2_models.loading.pinning import Pin
from stage2_models.tokeniser import tokenise, tokenise_like_butd_vqa
from stage2_models.vocabulary import Vocabulary
from stage2_models.vqa_metrics import AnsweredQuestion
from store_schema.errors import ConfigError, UsageError
from store_schema.reader import RegionStore
from store_schema.tables import read_table

logger = logging.getLogger(__name__)


QuestionTokeniser = Literal["ptb", "butd-vqa"]


@dataclass(frozen=True, kw_only=True)
class VqaDataConfig:
    """Which questions are learned and judged, and how they are read."""

    batch_size: int = 128
    train_split: str = "train"
    eval_split: str = "val"
    min_answer_count: int = 1
    """Answers that are the most common one of fewer training questions are not learned (VQA v2: 9)."""
    min_word_count: int = 1
    """Words that occur less often in the training questions are read as "unknown"."""
    tokeniser: QuestionTokeniser = "ptb"
    """How questions are split: "ptb" as captions are, "butd-vqa" as the published VQA code does."""
    max_question_length: int = 14
    """Words of a question that are read; longer ones lose their end."""
    word_vectors: str = ""
    """File of GloVe's text form whose vectors the word embedding begins with, of the model's embed_dim; words
    that it lacks begin as zeros. Empty: random ones."""
    by_length: bool = False
    """Batch questions of like length together: less padding, a slightly less random order."""
    eval_batch_size: int = 512
    max_eval_questions: int = 0
    """Judge at most so many questions in an evaluation, evenly spaced over the split; 0: all."""
    train_eval_questions: int = 1000
    """Training questions that an evaluation also answers, to show what is learned by type; 0: none."""
    seed: int = 0
    num_workers: int = DEFAULT_WORKERS
    pin: Pin = "auto"

    def __post_init__(self) -> None:
        least = {
            "batch_size": 1, "min_answer_count": 1, "min_word_count": 1, "max_question_length": 1,
            "eval_batch_size": 1, "max_eval_questions": 0, "train_eval_questions": 0, "seed": 0, "num_workers": 0,
        }  # fmt: skip
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ConfigError(
                    f"vqa data: {name} must be at least {smallest}, it is {getattr(self, name)}"
                )
        if self.tokeniser not in get_args(QuestionTokeniser):
            raise ConfigError(
                f"vqa data: tokeniser must be one of {get_args(QuestionTokeniser)}, it is {self.tokeniser!r}"
            )


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
class Questions:
    """The questions of a split as text, each with at least one answer, in the tables' order."""

    image_ids: tuple[str, ...]
    texts: tuple[str, ...]
    answered: tuple[AnsweredQuestion, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, places: NDArray[np.int64]) -> "Questions":
        """Keep the questions at these places, in this order."""
        return Questions(
            image_ids=tuple(self.image_ids[place] for place in places),
            texts=tuple(self.texts[place] for place in places),
            answered=tuple(self.answered[place] for place in places),
        )


def read_questions(tables: Path, split: str, store: RegionStore | None) -> Questions:
    """Read a split's questions that have answers and, where a store is given, regions.

    What is left out is counted in the log.

    Errors: those of the tables; `UsageError` where the split has no question, or none is left.
    """
    frame = read_table(tables, "questions")
    selected = frame[frame["split"] == split].reset_index(drop=True)
    if selected.empty:
        raise UsageError(
            f"{tables}: no questions with split {split!r}; there are {sorted(set(frame['split'])) or 'none at all'}"
        )
    answers = _answers_by_question(tables)
    has_answer = selected["question_id"].isin(answers.keys()).to_numpy()
    in_store = np.ones(len(selected), bool)
    if store is not None:
        in_store = store.image_ids.places(selected["image_id"].tolist()) >= 0
    kept = selected[has_answer & in_store]
    _report_left_out(tables, split, store, has_answer, in_store, selected["image_id"])
    return Questions(
        image_ids=tuple(kept["image_id"]),
        texts=tuple(kept["text"]),
        answered=tuple(
            AnsweredQuestion(
                question_id=question_id,
                answers=answers[question_id],
                question_type=question_type,
                answer_type=answer_type,
            )
            for question_id, question_type, answer_type in zip(
                kept["question_id"], kept["question_type"], kept["answer_type"], strict=True
            )
        ),
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

    def batch(self, indices: NDArray[np.int64], regions: RegionBatch | None) -> VqaBatch:
        """Put the questions at `indices` [B] and the regions of their pictures into a batch."""
        lengths = self.lengths[indices]
        num_words = max(int(lengths.max(initial=0)), 1)
        return VqaBatch(
            indices=indices,
            token_ids=torch.from_numpy(self.token_ids[indices, :num_words]),
            lengths=torch.from_numpy(lengths),
            labels=torch.from_numpy(self.labels[indices]),
            scores=torch.from_numpy(self.scores[indices]),
            regions=regions,
        )


@lru_cache(maxsize=100_000)
def question_words(text: str, tokeniser: QuestionTokeniser) -> Sequence[str]:
    """Split a question into lower-case words."""
    return tokenise(text) if tokeniser == "ptb" else tokenise_like_butd_vqa(text)


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


def build_vocabularies(questions: Questions, config: VqaDataConfig) -> tuple[Vocabulary, AnswerVocabulary]:
    """Collect the words and the answers that training knows.

    Errors: `ConfigError` where no answer is frequent enough.
    """
    words = (question_words(text, config.tokeniser) for text in questions.texts)
    vocabulary = Vocabulary.build(words, min_count=config.min_word_count)
    normalised = [[normalise_answer(a) for a in question.answers] for question in questions.answered]
    return vocabulary, AnswerVocabulary.build(normalised, config.min_answer_count)


def question_batches(
    encoded: EncodedQuestions, store: RegionStore | None, *, batch_size: int
) -> Iterator[VqaBatch]:
    """Give all questions once, in order, read in this process; for evaluation."""
    if store is None or encoded.rows is None:
        for indices in epoch_batches(len(encoded), batch_size=batch_size, seed=0, epoch=0, shuffle=False):
            yield encoded.batch(indices, None)
        return
    with build_loader(store, encoded.rows, batch_size=batch_size, seed=0, shuffle=False, workers=0) as loader:
        for loaded in loader.epoch(0):
            yield encoded.batch(loaded.indices, loaded.regions)


def _answers_by_question(tables: Path) -> dict[str, tuple[str, ...]]:
    """Each question's answers in the annotators' order."""
    frame = read_table(tables, "answers")
    codes, question_ids = pd.factorize(frame["question_id"])
    order = np.lexsort((frame["annotator"].to_numpy(), codes))
    texts = frame["answer"].to_numpy()[order]
    bounds = np.searchsorted(codes[order], np.arange(len(question_ids) + 1))
    return {
        question_id: tuple(texts[start:end])
        for question_id, start, end in zip(question_ids, bounds[:-1], bounds[1:], strict=True)
    }


def _report_left_out(
    tables: Path,
    split: str,
    store: RegionStore | None,
    has_answer: NDArray[np.bool_],
    in_store: NDArray[np.bool_],
    image_ids: "pd.Series[str]",
) -> None:
    total, num_unanswered = len(has_answer), int((~has_answer).sum())
    if num_unanswered:
        logger.warning("%s: %s of %s questions have no answer, left out", split, num_unanswered, total)
    num_absent = int((~in_store).sum())
    if num_absent and store is not None:
        logger.warning(
            "%s: %s of %s questions are about pictures that %s does not have (the first is %r), left out",
            split, num_absent, total, store.path, image_ids.to_numpy()[~in_store][0],
        )  # fmt: skip
    if not (has_answer & in_store).any():
        where = "" if store is None else f" and a picture in {store.path}"
        raise UsageError(
            f"{tables}: none of the {total} questions with split {split!r} has an answer{where} ({num_unanswered} "
            f"without answers, {num_absent} on absent pictures); is the store made from other pictures?"
        )
