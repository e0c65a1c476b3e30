"""Captions drawn at random: with the model's probabilities, among the words that are left."""

from dataclasses import replace

import pytest
import torch

from stage2_models.captioner import Captioner, CaptionerConfig, build_captioner
from stage2_models.decoded import DecodedBatch
from stage2_models.decoding import DecodingConfig, decode
from stage2_models.loading.batch import RegionBatch
from stage2_models.vocabulary import Vocabulary

VOCABULARY = Vocabulary.build([["a", "b", "c", "d"]])
ONE_WORD = DecodingConfig(method="sample", num_captions=4000, max_length=1)


def _model() -> Captioner:
    torch.manual_seed(2)
    config = CaptionerConfig(hidden_dim=6, embed_dim=4, attention_dim=5)
    model = build_captioner(config, feature_dim=5, vocabulary_size=len(VOCABULARY)).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(4.0)
    return model


def _regions() -> RegionBatch:
    features = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    return RegionBatch(features, torch.ones(2, 3, 4), torch.full((2, 2), 9.0), torch.tensor([3, 1]))


def _drawn(config: DecodingConfig, seed: int = 0) -> DecodedBatch:
    model = _model()
    torch.manual_seed(seed)
    with torch.no_grad():
        return decode(model, model.encode(_regions()), VOCABULARY, config)


def _shares(config: DecodingConfig) -> torch.Tensor:
    """How often each word was drawn first, [B, V]."""
    words = _drawn(config).token_ids[:, :, 0]
    return torch.stack([torch.bincount(row, minlength=len(VOCABULARY)) for row in words]) / words.shape[1]


def _probabilities(temperature: float = 1.0) -> torch.Tensor:
    """Of the first word, [B, V], the words that are never written left out."""
    model = _model()
    with torch.no_grad():
        encoded = model.encode(_regions())
        state = model.initial_state(2, encoded.mean_gates)
        begin = torch.full((2,), VOCABULARY.bos_id)
        state, _ = model.step(encoded, model.gates_of_words(begin), state)
        logits = model.logits(state.language_hidden) / temperature
    logits[:, [VOCABULARY.pad_id, VOCABULARY.bos_id, VOCABULARY.unk_id]] = -torch.inf
    return logits.softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_words_come_as_often_as_the_model_says(temperature: float) -> None:
    shares = _shares(replace(ONE_WORD, temperature=temperature))
    torch.testing.assert_close(shares, _probabilities(temperature), atol=0.03, rtol=0)


def test_top_k_and_top_p_leave_the_likeliest_words_in_their_proportion() -> None:
    probabilities = _probabilities()
    ordered, places = probabilities.sort(dim=1, descending=True)
    held_by_two = ordered[:, :2].sum(1)
    among_two = torch.zeros_like(probabilities).scatter(
        1, places[:, :2], ordered[:, :2] / held_by_two.unsqueeze(1)
    )
    torch.testing.assert_close(_shares(replace(ONE_WORD, top_k=2)), among_two, atol=0.03, rtol=0)
    # A little more than the likeliest word holds: the second is needed, the third is not.
    for picture in range(2):
        shares = _shares(replace(ONE_WORD, top_p=float(ordered[picture, 0]) * 1.01))
        assert (shares[picture] > 0).sum() == 2
    assert ((_shares(replace(ONE_WORD, top_p=1e-6)) > 0).sum(1) == 1).all()


def test_log_probabilities_are_the_models_whatever_is_left_out() -> None:
    config = replace(ONE_WORD, num_captions=6, max_length=7, top_k=2)
    drawn, model = _drawn(config), _model()
    with torch.no_grad():
        encoded = model.encode(_regions())
        state = model.initial_state(12, encoded.mean_gates)
        words = torch.full((12,), VOCABULARY.bos_id)
        alive = torch.ones(12, dtype=torch.bool)
        for step in range(drawn.token_ids.shape[2]):
            state, weights = model.step(encoded, model.gates_of_words(words), state)
            words = drawn.token_ids[:, :, step].t().flatten()
            each = (
                model.logits(state.language_hidden).log_softmax(-1).gather(1, words.unsqueeze(1)).squeeze(1)
            )
            found = drawn.log_probs[:, :, step].t().flatten()
            torch.testing.assert_close(found, torch.where(alive, each, 0.0))
            attention = drawn.attention[:, :, step]
            torch.testing.assert_close(attention, weights * alive.view(6, 2).t().unsqueeze(-1))
            alive &= words != VOCABULARY.eos_id
    torch.testing.assert_close(drawn.scores, drawn.log_probs.sum(-1))


def test_the_seed_decides_the_captions() -> None:
    config = replace(ONE_WORD, num_captions=8, max_length=6)
    assert torch.equal(_drawn(config, seed=1).token_ids, _drawn(config, seed=1).token_ids)
    assert not torch.equal(_drawn(config, seed=1).token_ids, _drawn(config, seed=2).token_ids)
