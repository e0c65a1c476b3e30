"""Questions and answers of the tables, and the vocabularies of words and answers.

Reads the `questions` and `answers` tables and says what is left out and why: questions without answers, questions on
pictures that the store does not have. vqa_batches.py makes batches of them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stage2_models.answers import AnswerVocabulary, normalise_answer
from stage2_models.loader import DEFAULT_WORKERS
from stage2_models.loading.pinning import Pin
from stage2_models.tokeniser import tokenise, tokenise_like_butd_vqa
from stage2_models.vocabulary import Vocabulary
from stage2_models.vqa_metrics import AnsweredQuestion
from store_schema.coverage import coverage
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
    by_picture: bool = False
    """Batch all questions of a picture together: its regions are read and projected once for all of them. Batches
    then hold whole pictures and only on average `batch_size` questions."""
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
        if self.by_length and self.by_picture:
            raise ConfigError(
                "vqa data: by_length and by_picture order the questions differently; set one of them"
            )
        if self.tokeniser not in get_args(QuestionTokeniser):
            raise ConfigError(
                f"vqa data: tokeniser must be one of {get_args(QuestionTokeniser)}, it is {self.tokeniser!r}"
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


@lru_cache(maxsize=100_000)
def question_words(text: str, tokeniser: QuestionTokeniser) -> Sequence[str]:
    """Split a question into lower-case words."""
    return tokenise(text) if tokeniser == "ptb" else tokenise_like_butd_vqa(text)


def build_vocabularies(questions: Questions, config: VqaDataConfig) -> tuple[Vocabulary, AnswerVocabulary]:
    """Collect the words and the answers that training knows.

    Errors: `ConfigError` where no answer is frequent enough.
    """
    words = (question_words(text, config.tokeniser) for text in questions.texts)
    vocabulary = Vocabulary.build(words, min_count=config.min_word_count)
    normalised = [[normalise_answer(a) for a in question.answers] for question in questions.answered]
    return vocabulary, AnswerVocabulary.build(normalised, config.min_answer_count)


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
            "%s: %s of %s questions are about pictures that %s does not have, left out; of the pictures %s",
            split, num_absent, total, store.path, coverage(store, image_ids.tolist()).why_missing(),
        )  # fmt: skip
    if not (has_answer & in_store).any():
        where = "" if store is None else f" and a picture in {store.path}"
        raise UsageError(
            f"{tables}: none of the {total} questions with split {split!r} has an answer{where} ({num_unanswered} "
            f"without answers, {num_absent} on absent pictures); is the store made from other pictures?"
        )
