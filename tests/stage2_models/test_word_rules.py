"""Which words may follow: each rule by hand, and in whole captions by beam search and by sampling."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stage2_models.captioner import Captioner, CaptionerConfig, build_captioner
from stage2_models.decoding import DecodingConfig, decode
from stage2_models.loading.batch import RegionBatch
from stage2_models.vocabulary import Vocabulary
from stage2_models.word_rules import WordRules, trim_bad_endings

VOCABULARY = Vocabulary.build([["a", "dog", "on", "grass"]])
CPU = torch.device("cpu")
A, DOG, ON, GRASS = (VOCABULARY.ids[word] for word in ("a", "dog", "on", "grass"))
BOTH_METHODS = [
    DecodingConfig(beam_size=3, max_length=9),
    DecodingConfig(method="sample", num_captions=20, max_length=9),
]


def _log_probs(config: DecodingConfig, history: list[int]) -> Tensor:
    """Log-probabilities after these words, where the model finds all words equally likely."""
    rules = WordRules(config, VOCABULARY, CPU)
    words = torch.tensor([history], dtype=torch.long)
    last = words[:, -1] if history else torch.tensor([VOCABULARY.bos_id])
    return rules.log_probs(torch.zeros(1, len(VOCABULARY)), len(history), last, words)[0]


def _forbidden(config: DecodingConfig, history: list[int]) -> set[int]:
    return set(torch.isinf(_log_probs(config, history)).nonzero().flatten().tolist())


ALWAYS = {VOCABULARY.pad_id, VOCABULARY.bos_id, VOCABULARY.unk_id}


@pytest.mark.parametrize(
    ("settings", "history", "more"),
    [
        ({}, [DOG], set()),
        ({"allow_unk": True}, [DOG], {-VOCABULARY.unk_id}),
        ({"min_length": 2}, [DOG], {VOCABULARY.eos_id}),
        ({"min_length": 2}, [DOG, DOG], set()),
        ({"no_repeat": True}, [A, DOG], {DOG}),
        ({"no_repeat": True}, [], set()),
        ({"forbid_bad_endings": True}, [DOG, ON], {VOCABULARY.eos_id}),
        ({"forbid_bad_endings": True}, [ON, DOG], set()),
        ({"trigram_penalty": math.inf}, [A, DOG, ON, A, DOG], {ON}),
        ({"trigram_penalty": math.inf}, [A, DOG, ON, DOG, A], set()),
        ({"trigram_penalty": math.inf}, [A, A, A], {A}),
    ],
)
def test_a_rule_forbids_what_it_says_and_nothing_else(
    settings: dict[str, Any], history: list[int], more: set[int]
) -> None:
    expected = (ALWAYS | {word for word in more if word > 0}) - {-word for word in more if word < 0}
    assert _forbidden(DecodingConfig(**settings), history) == expected


def test_a_soft_penalty_counts_every_earlier_time_and_nothing_is_renormalised() -> None:
    history = [A, DOG, ON, A, DOG, ON, A, DOG]
    log_probs = _log_probs(DecodingConfig(trigram_penalty=0.5), history)
    assert log_probs[ON].item() == pytest.approx(-math.log(len(VOCABULARY)) - 1.0)
    assert log_probs[GRASS].item() == pytest.approx(-math.log(len(VOCABULARY)))


def test_temperature_acts_on_the_first_word_or_not() -> None:
    logits = torch.tensor([[0.0, 0.0, 1.0, 0.0, 2.0, 0.0, 0.0, 0.0]])
    last = torch.tensor([DOG])
    for first, step, tempered in ((True, 0, True), (False, 0, False), (False, 1, True)):
        config = DecodingConfig(temperature=0.5, temper_first_word=first)
        found = WordRules(config, VOCABULARY, CPU).log_probs(logits.clone(), step, last, None)
        expected = (logits / 0.5 if tempered else logits).log_softmax(-1)
        assert found[0, 4].item() == pytest.approx(expected[0, 4].item())


def test_bad_endings_are_trimmed_but_never_to_nothing() -> None:
    assert trim_bad_endings(["a", "dog", "on", "the"]) == ["a", "dog"]
    assert trim_bad_endings(["on", "the"]) == ["on", "the"]
    assert trim_bad_endings([]) == []


def _model() -> tuple[Captioner, RegionBatch]:
    """A captioner that repeats itself and ends badly where nothing keeps it from that."""
    torch.manual_seed(4)
    config = CaptionerConfig(hidden_dim=6, embed_dim=4, attention_dim=5)
    model = build_captioner(config, feature_dim=5, vocabulary_size=len(VOCABULARY)).eval()
    with torch.no_grad():
        model.classifier.bias[[A, ON]] += 1.5
        model.classifier.bias[VOCABULARY.unk_id] += 1.0
        model.classifier.bias[VOCABULARY.eos_id] -= 1.5
    features = torch.randn(3, 2, 5)
    return model, RegionBatch(features, torch.ones(3, 2, 4), torch.full((3, 2), 9.0), torch.tensor([2, 1, 0]))


def _captions(config: DecodingConfig) -> list[tuple[str, ...]]:
    torch.manual_seed(0)
    model, regions = _model()
    with torch.no_grad():
        decoded = decode(model, model.encode(regions), VOCABULARY, config)
    return [caption.words for captions in decoded.all_captions(VOCABULARY) for caption in captions]


def _repeats_a_word(words: tuple[str, ...]) -> bool:
    return any(one == other for one, other in itertools.pairwise(words))


def _repeats_a_trigram(words: tuple[str, ...]) -> bool:
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(trigrams)) < len(trigrams)


@pytest.mark.parametrize("config", BOTH_METHODS, ids=["beam", "sample"])
def test_whole_captions_keep_the_rules(config: DecodingConfig) -> None:
    free = _captions(config)
    assert any(map(_repeats_a_word, free))
    assert any(map(_repeats_a_trigram, free))
    assert any(len(words) < 4 or words[-1] in ("a", "on") for words in free)
    assert not any(map(_repeats_a_word, _captions(replace(config, no_repeat=True))))
    assert not any(map(_repeats_a_trigram, _captions(replace(config, trigram_penalty=math.inf))))
    assert all(len(words) >= 4 for words in _captions(replace(config, min_length=4)))
    assert not any("<unk>" in words for words in free)
    ended = [words for words in _captions(replace(config, forbid_bad_endings=True)) if len(words) < 9]
    assert all(words[-1] not in ("a", "on") for words in ended if words)


def test_unknown_words_are_written_where_they_may_be() -> None:
    assert any("<unk>" in words for words in _captions(replace(BOTH_METHODS[1], allow_unk=True)))
