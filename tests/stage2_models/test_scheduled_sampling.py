"""The model's own words among those that it reads in training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stage2_models.caption_losses import CaptionLossConfig
from stage2_models.caption_tokens import CaptionTokens
from stage2_models.captioner import Captioner, CaptionerConfig, build_captioner
from stage2_models.loading.batch import RegionBatch
from stage2_models.scheduled_sampling import mix_in_own_words
from stage2_models.vocabulary import Vocabulary

VOCABULARY = Vocabulary.build([list("abcdefgh")])
CONFIG = CaptionerConfig(hidden_dim=6, embed_dim=4, attention_dim=5, embed_regions=True, dropout=0.5)


def _model(config: CaptionerConfig = CONFIG) -> Captioner:
    torch.manual_seed(0)
    return build_captioner(config, feature_dim=7, vocabulary_size=len(VOCABULARY)).train()


def _batch() -> tuple[RegionBatch, CaptionTokens]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 2, 7, generator=generator)
    regions = RegionBatch(features, torch.ones(3, 2, 4), torch.full((3, 2), 9.0), torch.full((3,), 2))
    lengths = np.array([[6, 3], [5, 5], [1, -1]])
    words = np.random.default_rng(0).integers(4, len(VOCABULARY), (3, 2, 6))
    return regions, CaptionTokens.from_arrays(words, lengths, VOCABULARY)


def test_own_words_are_those_that_the_learning_reading_predicts_under_the_same_dropout() -> None:
    """With a certain model, each own word must be the most probable one at its place in the second reading."""
    model, (regions, tokens) = _model(), _batch()
    with torch.no_grad():
        model.classifier.weight.mul_(1e6)
        encoded = model.encode(regions)
        masks = model.draw_masks(tokens.inputs.numel(), encoded)
        mixed = mix_in_own_words(model, encoded, tokens, masks, 0.6)
        outputs = model.outputs(encoded, mixed, tokens.captions_per_step, masks)
    predicted = model.logits(outputs).argmax(1)
    own = (mixed != tokens.inputs).flatten()
    assert own.sum() > 5
    start = 0
    for count, following in zip(tokens.captions_per_step, tokens.captions_per_step[1:], strict=False):
        here = slice(start + count * 3, start + count * 3 + following * 3)
        before = predicted[start : start + following * 3]
        assert torch.equal(mixed.flatten()[here][own[here]], before[own[here]])
        start += count * 3


def test_the_share_of_own_words_is_the_probability_and_begin_is_never_replaced() -> None:
    model, (regions, tokens) = _model(replace(CONFIG, dropout=0.0)), _batch()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()
        model.classifier.bias[VOCABULARY.unk_id] = 50.0  # the model's own word is never a true one here
        encoded = model.encode(regions)
        masks = model.draw_masks(tokens.inputs.numel(), encoded)
        drawn = [mix_in_own_words(model, encoded, tokens, masks, 0.3) for _ in range(200)]
    share = torch.stack([inputs == VOCABULARY.unk_id for inputs in drawn]).float().mean(0)
    first = tokens.captions_per_step[0]
    assert (share[:first] == 0).all()
    assert share[first:].mean() == pytest.approx(0.3, abs=0.03)


def test_the_probability_grows_with_the_epochs_up_to_its_limit() -> None:
    losses = CaptionLossConfig(scheduled_sampling_increase=0.05)
    assert [losses.own_word_probability(epoch) for epoch in (0, 4, 5, 9, 10, 100)] == pytest.approx(
        [0, 0, 0.05, 0.05, 0.1, 0.25]
    )
    assert CaptionLossConfig().own_word_probability(100) == 0
