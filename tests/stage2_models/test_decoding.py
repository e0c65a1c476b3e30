"""Beam and greedy search against plain searches over the same model."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from stage2_models.beam_search import _Search
from stage2_models.caption_tokens import CaptionTokens
from stage2_models.captioner import Captioner, CaptionerConfig, build_captioner
from stage2_models.decoding import DecodedBatch, DecodingConfig, GeneratedCaption, decode
from stage2_models.loading.batch import RegionBatch
from stage2_models.vocabulary import Vocabulary
from store_schema.errors import ConfigError

VOCABULARY = Vocabulary.build([["a", "b", "c"]])
LENGTH = 3


def _model(seed: int) -> Captioner:
    torch.manual_seed(seed)
    config = CaptionerConfig(hidden_dim=6, embed_dim=4, attention_dim=5)
    model = build_captioner(config, feature_dim=5, vocabulary_size=len(VOCABULARY)).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(6.0)  # so that words differ in probability
        model.word_embedding.weight.mul_(2.0)
        model.classifier.bias[VOCABULARY.eos_id] -= 1.0  # and captions are not empty
    return model


def _regions(counts: list[int]) -> RegionBatch:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(len(counts), 4, 5, generator=generator)
    boxes = torch.tensor([1.0, 1.0, 5.0, 5.0]).expand(len(counts), 4, 4)
    return RegionBatch(features, boxes, torch.full((len(counts), 2), 9.0), torch.tensor(counts))


def _one(regions: RegionBatch, index: int) -> RegionBatch:
    return RegionBatch(*(value[index : index + 1] for value in regions._tensors()))


def _log_prob(model: Captioner, picture: RegionBatch, words: tuple[int, ...], ends: bool) -> float:
    tokens = CaptionTokens.from_arrays(np.array([[words]]), np.array([[len(words)]]), VOCABULARY)
    with torch.no_grad():
        log_probs = model(picture, tokens).log_softmax(-1)
    each = log_probs[torch.arange(len(tokens.targets)), tokens.targets]
    return float(each.sum() if ends else each[:-1].sum())


def _search(model: Captioner, regions: RegionBatch, beam_size: int, length: int = LENGTH) -> DecodedBatch:
    with torch.no_grad():
        encoded = model.encode(regions)
    return decode(model, encoded, VOCABULARY, DecodingConfig(beam_size=beam_size, max_length=length))


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_wide_enough_finds_the_best_of_all_captions(seed: int) -> None:
    model, regions = _model(seed), _regions([4, 2, 0])
    found = _search(model, regions, beam_size=len(VOCABULARY))
    words = VOCABULARY.encode(["a", "b", "c"])
    for picture in range(3):
        scores = {
            caption: _log_prob(model, _one(regions, picture), caption, ends=size < LENGTH)
            for size in range(LENGTH + 1)
            for caption in itertools.product(words, repeat=size)
        }
        best = max(scores, key=lambda caption: scores[caption])
        assert VOCABULARY.decode(found.token_ids[picture, 0].tolist()) == [VOCABULARY.words[i] for i in best]
        assert found.scores[picture, 0].item() == pytest.approx(scores[best], abs=1e-4)


@pytest.mark.parametrize("length_penalty", ["avg", "wu_0.7", "wu_-0.5"])
def test_the_n_best_of_a_wide_beam_are_those_of_all_captions_under_a_length_penalty(
    length_penalty: str,
) -> None:
    """Two words and the end at most, so that a beam of all words keeps every caption."""
    model, regions, length = _model(3), _regions([4, 2]), 2
    config = DecodingConfig(beam_size=7, num_captions=4, max_length=length, length_penalty=length_penalty)
    found = decode(model, model.encode(regions), VOCABULARY, config)
    words = VOCABULARY.encode(["a", "b", "c"])
    for picture, captions in enumerate(found.all_captions(VOCABULARY)):
        scores = {}
        for size in range(length + 1):
            for caption in itertools.product(words, repeat=size):
                tokens = min(size + 1, length)
                divisor = {
                    "avg": tokens,
                    "wu_0.7": ((5 + tokens) / 6) ** 0.7,
                    "wu_-0.5": ((5 + tokens) / 6) ** -0.5,
                }
                log_prob = _log_prob(model, _one(regions, picture), caption, ends=size < length)
                scores[tuple(VOCABULARY.words[i] for i in caption)] = log_prob / divisor[length_penalty]
        best = sorted(scores, key=lambda caption: -scores[caption])[:4]
        assert [caption.words for caption in captions] == best
        assert [caption.score for caption in captions] == pytest.approx(
            [scores[words] for words in best], abs=1e-4
        )


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_one_is_greedy(seed: int) -> None:
    model, regions = _model(seed), _regions([4, 2, 0])
    found = _search(model, regions, beam_size=1, length=8)
    for picture in range(3):
        one = _one(regions, picture)
        encoded = model.encode(one)
        state = model.initial_state(1, encoded.mean_gates)
        word = VOCABULARY.bos_id
        expected: list[int] = []
        while len(expected) < 8 and word != VOCABULARY.eos_id:
            state, _ = model.step(encoded, model.gates_of_words(torch.tensor([word])), state)
            logits = model.logits(state.language_hidden)[0]
            logits[[VOCABULARY.pad_id, VOCABULARY.bos_id, VOCABULARY.unk_id]] = -torch.inf
            word = int(logits.argmax())
            expected.append(word)
        assert VOCABULARY.decode(found.token_ids[picture, 0].tolist()) == VOCABULARY.decode(expected)


def test_wider_beams_never_lower_the_score_here_and_batching_changes_nothing() -> None:
    model, regions = _model(1), _regions([4, 2, 0, 3])
    together = _search(model, regions, beam_size=3, length=8)
    assert (together.scores >= _search(model, regions, beam_size=1, length=8).scores - 1e-5).all()
    for picture in range(4):
        alone = _search(model, _one(regions, picture), beam_size=3, length=8)
        steps = min(alone.token_ids.shape[2], together.token_ids.shape[2])
        assert alone.token_ids[0, 0, :steps].tolist() == together.token_ids[picture, 0, :steps].tolist()
        torch.testing.assert_close(alone.scores[0], together.scores[picture])


def _captions(seed: int, beam_size: int) -> tuple[Captioner, RegionBatch, list[GeneratedCaption]]:
    model, regions = _model(seed), _regions([4, 2])
    return model, regions, _search(model, regions, beam_size, length=6).captions(VOCABULARY)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_every_word_has_its_own_log_probability_and_attention(beam_size: int) -> None:
    """The beam's histories cross; what is read back must be what the caption's own words give."""
    model, regions, captions = _captions(2, beam_size)
    assert any(caption.words for caption in captions)
    for picture, caption in enumerate(captions):
        encoded = model.encode(_one(regions, picture))
        state = model.initial_state(1, encoded.mean_gates)
        previous = VOCABULARY.bos_id
        for index, word in enumerate(VOCABULARY.encode(caption.words)):
            state, weights = model.step(encoded, model.gates_of_words(torch.tensor([previous])), state)
            log_probs = model.logits(state.language_hidden)[0].log_softmax(0)
            assert caption.log_probs[index] == pytest.approx(log_probs[word].item(), abs=1e-5)
            np.testing.assert_allclose(caption.attention[index], weights[0, 0].detach().numpy(), atol=1e-6)
            previous = word


def test_unknown_words_are_never_written() -> None:
    model = _model(0)
    with torch.no_grad():
        model.classifier.bias[[VOCABULARY.unk_id, VOCABULARY.pad_id, VOCABULARY.bos_id]] = 50.0
    found = _search(model, _regions([4, 1]), beam_size=2)
    written = set(found.token_ids.flatten().tolist()) - {VOCABULARY.pad_id}
    assert VOCABULARY.unk_id not in written
    assert VOCABULARY.bos_id not in written


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam_size": 0}, "beam_size must be at least 1, it is 0"),
        ({"min_length": 9, "max_length": 8}, "min_length 9 is above max_length 8"),
        ({"top_k": 3}, "no effect on beam search"),
        ({"num_captions": 4}, "a beam of 3 has no 4 best captions"),
        ({"length_penalty": "wu_much"}, "expected none, avg, or wu_ and a number"),
        ({"method": "sample", "length_penalty": "avg"}, "no effect on sampling"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DecodingConfig(**settings)


@pytest.mark.parametrize("length_penalty", ["none", "avg", "wu_-0.5"])
@pytest.mark.parametrize("num_captions", [1, 3])
def test_leaving_out_the_hopeless_and_sharing_states_change_nothing(
    length_penalty: str, num_captions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a search that carries every hypothesis to the longest length, each with a state of its own."""
    config = DecodingConfig(
        beam_size=4,
        num_captions=num_captions,
        max_length=9,
        length_penalty=length_penalty,
        trigram_penalty=1.0,
    )
    for seed in range(4):
        model, regions = _model(seed), _regions([4, 2, 0, 3, 1])
        quick = decode(model, model.encode(regions), VOCABULARY, config)
        with monkeypatch.context() as patch:
            patch.setattr(_Search, "leave_out_hopeless", lambda search: False)
            patch.setattr(
                _Search, "_distinct_states", lambda search: (search.state.select(search.continued), None)
            )
            whole = decode(model, model.encode(regions), VOCABULARY, config)
        torch.testing.assert_close(quick.scores, whole.scores)
        for mine, theirs in zip(quick.all_captions(VOCABULARY), whole.all_captions(VOCABULARY), strict=True):
            assert [caption.words for caption in mine] == [caption.words for caption in theirs]
            for one, other in zip(mine, theirs, strict=True):
                np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)
                np.testing.assert_allclose(one.attention, other.attention, atol=1e-6)
