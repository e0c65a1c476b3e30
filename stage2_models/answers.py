"""Answers of visual question answering: their official normalisation, their scores, the answer vocabulary.

The rules are those of the VQA challenge's evaluation, odd ones included, so that our accuracies are the
official ones. Written from the rules, and checked against the official program's output
(tests/stage2_models/test_vqa_metrics.py) and against a public training repository's targets.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from store_schema.errors import ConfigError

# A comma is on the list, a period is not: periods have a rule of their own.
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
_PERIOD_BEFORE_NO_DIGIT = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32
"""The official program hands a flag of value 32 to the place of a count; nothing after the 32nd is removed."""
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
    we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
    who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've
    you'll you're you've
"""

MIN_AGREEING_ANNOTATORS = 3
"""An answer that this many other people gave is right."""


def clean_whitespace(answer: str) -> str:
    """Turn line breaks and tabs into spaces and strip the ends; case and inner spaces stay."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=200_000)
def normalise_answer(answer: str) -> str:
    """Bring an answer into the official form in which answers are compared.

    Punctuation goes, number words become digits, articles go, missing apostrophes come back, all in lower
    case. May give the empty string ("the" is all article). Not meant to be applied twice: more than 32 periods,
    for one, lose another 32.
    """
    words = []
    for word in normalise_punctuation(clean_whitespace(answer)).lower().split():
        word = _NUMBERS.get(word, word)
        if word not in _ARTICLES:
            words.append(_CONTRACTIONS.get(word, word))
    return " ".join(words)


def normalise_punctuation(answer: str) -> str:
    """Remove punctuation by the official rules.

    A mark is deleted if it touches a space anywhere in the answer and becomes a space otherwise ("t-shirt" is
    "t shirt", "red, white" is "red white"); with a comma between digits anywhere, all marks are deleted.
    Periods go unless a digit follows. ':', '$', '%', '#' and apostrophes stay.
    """
    delete_all = _COMMA_BETWEEN_DIGITS.search(answer) is not None
    result = answer
    for mark in _PUNCTUATION:
        if mark in answer:
            touches_space = f"{mark} " in answer or f" {mark}" in answer
            result = result.replace(mark, "" if delete_all or touches_space else " ")
    return _PERIOD_BEFORE_NO_DIGIT.sub("", result, count=_MAX_PERIODS)


@lru_cache(maxsize=10_000)
def answer_score(equal: tuple[bool, ...]) -> float:
    """Score an answer by how many people gave it, between 0 and 1.

    The official rule: leave each person out in turn, count min(1, equal answers among the others / 3), and
    average. With ten people that is 0, .3, .6, .9, 1, 1, ... With two or three people, all of the others
    must agree in place of three of them, and a single person's answer scores 1: so whatever everybody said
    scores 1, however many there were.

    Args:
        equal: for each annotator of the question, at least one, whether their answer is this one.
    """
    if len(equal) == 1:
        return float(equal[0])
    needed = min(MIN_AGREEING_ANNOTATORS, len(equal) - 1)
    # Summed person by person, in their order, as the official program does, so that no last digit differs.
    return sum(min(1.0, (sum(equal) - own) / needed) for own in equal) / len(equal)


def most_common_answer(answers: Iterable[str]) -> str:
    """The answer that occurs most often; of equally frequent ones the first given."""
    return Counter(answers).most_common(1)[0][0]


@dataclass(frozen=True)
class AnswerVocabulary:
    """The answers that a model can give, in a fixed order; an answer's place in it is its label."""

    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.answers:
            raise ConfigError("an answer vocabulary needs at least one answer, it has none")
        if len(set(self.answers)) != len(self.answers):
            twice = [answer for answer, count in Counter(self.answers).items() if count > 1]
            raise ConfigError(f"answers must be unique in an answer vocabulary, {twice[0]!r} is there twice")

    @classmethod
    def build(cls, questions: Iterable[Sequence[str]], min_count: int = 1) -> "AnswerVocabulary":
        """Take the answers that are the most common one of at least `min_count` questions.

        Most frequent first, equally frequent ones in alphabetical order. The empty answer is left out.

        Args:
            questions: for each question its normalised answers, one per annotator, at least one.

        Errors: `ConfigError` where no answer is that frequent.
        """
        counts = Counter(most_common_answer(answers) for answers in questions)
        kept = [answer for answer, count in counts.items() if count >= min_count and answer]
        if not kept:
            most = max(counts.values(), default=0)
            raise ConfigError(
                f"no answer is the most common one of {min_count} questions or more (the most frequent one has "
                f"{most}); lower min_answer_count"
            )
        return cls(tuple(sorted(kept, key=lambda answer: (-counts[answer], answer))))

    def __len__(self) -> int:
        return len(self.answers)

    @cached_property
    def labels(self) -> dict[str, int]:
        """Each answer's label."""
        return {answer: label for label, answer in enumerate(self.answers)}

    def soft_target(self, answers: Sequence[str]) -> dict[int, float]:
        """Score every known answer of a question by `answer_score`, by label; answers not known are left out.

        Answers are compared as they are given: normalise them first.
        """
        return {
            self.labels[answer]: answer_score(tuple(other == answer for other in answers))
            for answer in dict.fromkeys(answers)
            if answer in self.labels
        }


def _missing_apostrophes() -> dict[str, str]:
    """Each contraction with exactly one apostrophe forgotten, to its right form.

    The official table has one entry the other way round (somebody'd), and a few with a capital I that can
    never match, since answers are in lower case by then; those are left out.
    """
    table = {"somebody'd": "somebodyd"}
    for word in _CONTRACTED.split():
        for position, character in enumerate(word):
            if character == "'":
                table[word[:position] + word[position + 1 :]] = word
    return table


_CONTRACTIONS = _missing_apostrophes()
