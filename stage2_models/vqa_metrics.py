"""Accuracy of answers by the official rule of the VQA challenge: overall, by question type, by answer type.

Equal to the official evaluation program to the last printed digit. Scores are fractions; the percentages that
the official program prints are beside them. Baselines that need no picture are here too.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stage2_models.answers import answer_score, clean_whitespace, most_common_answer, normalise_answer
from store_schema.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class AnsweredQuestion:
    """A question's answers by people, as they were typed, and its kinds."""

    question_id: str
    answers: tuple[str, ...]
    """One per annotator, at least one."""
    question_type: str
    answer_type: str


@dataclass(frozen=True, kw_only=True)
class VqaScores:
    """Accuracies as fractions; each is a mean over questions."""

    accuracy: float
    by_question_type: dict[str, float]
    by_answer_type: dict[str, float]
    per_question: dict[str, float]
    printed: dict[str, float | dict[str, float]]
    """Percentages with two decimals under the official program's names, computed in its order."""


def vqa_accuracy(predictions: Mapping[str, str], questions: Sequence[AnsweredQuestion]) -> VqaScores:
    """Score one predicted answer for every question.

    Args:
        predictions: answer by question_id; those of other questions are not looked at.
        questions: in the order in which types are to be listed.

    Errors: `UsageError` where a question has no prediction, or there is no question.
    """
    if not questions:
        raise UsageError("accuracy: at least one question with answers is needed, there is none")
    missing = [q.question_id for q in questions if q.question_id not in predictions]
    if missing:
        raise UsageError(
            f"accuracy: {len(missing)} of {len(questions)} questions have no predicted answer, the first is "
            f"{missing[0]!r}; a complete set is needed"
        )
    per_question = {
        q.question_id: question_accuracy(predictions[q.question_id], q.answers) for q in questions
    }
    values = [per_question[q.question_id] for q in questions]
    by_question_type = _group(values, [q.question_type for q in questions])
    by_answer_type = _group(values, [q.answer_type for q in questions])
    return VqaScores(
        accuracy=_mean(values),
        by_question_type={kind: _mean(group) for kind, group in by_question_type.items()},
        by_answer_type={kind: _mean(group) for kind, group in by_answer_type.items()},
        per_question=per_question,
        printed={
            "overall": _percent(values),
            "perQuestionType": {kind: _percent(group) for kind, group in by_question_type.items()},
            "perAnswerType": {kind: _percent(group) for kind, group in by_answer_type.items()},
        },
    )


def question_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Score a predicted answer against those of the annotators by `answer_score`.

    As in the official program, both sides are normalised only where the annotators' answers differ: to a
    unanimous "yes", "Yes." is wrong. A single annotator's answer is always normalised, since nothing could
    differ (our rule: the official one knows no single annotators).
    """
    given = [clean_whitespace(answer) for answer in answers]
    predicted = clean_whitespace(prediction)
    if len(given) == 1 or len(set(given)) > 1:
        given = [normalise_answer(answer) for answer in given]
        predicted = normalise_answer(predicted)
    return answer_score(tuple(answer == predicted for answer in given))


def pair_consistency(per_question: Mapping[str, float], pair_ids: Mapping[str, str]) -> float | None:
    """Share of balanced pairs (one question, two pictures, two answers) whose two answers are both right.

    A pair counts as much as the less right of its two answers, so a model that does not look at the picture gets
    at most the answers that happen to be shared. Goyal et al. 2017, arXiv 1612.00837, sec. 3.

    Args:
        per_question: accuracy by question_id.
        pair_ids: pair of each question that is in one; pairs with only one scored question do not count.

    Returns:
        The mean over pairs, None where there is none.
    """
    pairs: dict[str, list[float]] = defaultdict(list)
    for question_id, pair_id in pair_ids.items():
        if question_id in per_question:
            pairs[pair_id].append(per_question[question_id])
    lower = [min(values) for values in pairs.values() if len(values) == 2]
    return _mean(lower) if lower else None


def most_common_predictions(
    training: Sequence[AnsweredQuestion],
    questions: Sequence[AnsweredQuestion],
    *,
    by_question_type: bool = False,
) -> dict[str, str]:
    """Answer every question with the most common answer of training, or with that of its question type.

    A question type that training does not have gets the overall answer. Answers are in normalised form.
    """
    if not training:
        raise UsageError("most common answer: at least one training question with answers is needed")
    majority = [most_common_answer(map(normalise_answer, q.answers)) for q in training]
    overall = most_common_answer(majority)
    of_type: dict[str, list[str]] = defaultdict(list)
    if by_question_type:
        for question, answer in zip(training, majority, strict=True):
            of_type[question.question_type].append(answer)
    best = {kind: most_common_answer(answers) for kind, answers in of_type.items()}
    return {q.question_id: best.get(q.question_type, overall) for q in questions}


def _group(values: Sequence[float], kinds: Sequence[str]) -> dict[str, list[float]]:
    grouped: dict[str, list[float]] = defaultdict(list)
    for value, kind in zip(values, kinds, strict=True):
        grouped[kind].append(value)
    return grouped


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percent(values: Sequence[float]) -> float:
    # A plain sum in order, multiplied before it is divided, as the official program does: the last digit
    # of a value that lies between two depends on it.
    return round(100 * sum(values) / len(values), 2)
