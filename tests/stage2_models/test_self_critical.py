"""The second phase of the captioner: what a step samples is what it learns from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stage2_models.caption_losses import CaptionLossConfig, advantages, self_critical_loss
from stage2_models.caption_task import CaptionTask, build_caption_task
from stage2_models.cider import CiderD
from stage2_models.decoded import DecodedBatch
from stage2_models.sampling import sample
from store_schema.errors import ConfigError
from tests.stage2_models.caption_world import CPU, DATA, MODEL, World, write_world

LOSSES = CaptionLossConfig(self_critical_from_epoch=0, samples_per_image=3, score_workers=0)
EMBEDS = replace(MODEL, embed_regions=True, batch_norm="around", dropout=0.4)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return write_world(tmp_path)


def _task(world: World, losses: CaptionLossConfig = LOSSES) -> CaptionTask:
    torch.manual_seed(0)
    return build_caption_task(world.tables, world.store, model=EMBEDS, data=DATA, losses=losses, device=CPU)


class Seen:
    """What a step sampled and what it learned from."""

    drawn: DecodedBatch
    log_probs: Tensor
    advantage: Tensor


def _step(task: CaptionTask, monkeypatch: pytest.MonkeyPatch) -> tuple[Seen, Tensor, int, dict[str, float]]:
    seen = Seen()

    def watched_sample(*arguments: Any) -> DecodedBatch:
        seen.drawn = sample(*arguments)
        return seen.drawn

    def watched_loss(log_probs: Tensor, advantage: Tensor) -> Tensor:
        seen.log_probs, seen.advantage = log_probs, advantage
        return self_critical_loss(log_probs, advantage)

    monkeypatch.setattr("stage2_models.self_critical.sample", watched_sample)
    monkeypatch.setattr("stage2_models.self_critical.self_critical_loss", watched_loss)
    total, count, parts = task.loss(next(task.batches(0, 0)), step=0, epoch=0)
    return seen, total, count, {name: part.item() for name, part in parts.items()}


def test_the_reading_with_gradients_gives_the_sampled_words_their_sampled_probabilities(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout and batch normalisation on: both readings must have the same.

    Drawing gives the model's own probabilities, learning those among the words that can be drawn: here they agree.
    """
    task = _task(world)
    with torch.no_grad():
        task._network.classifier.bias[[task.vocabulary.pad_id, task.vocabulary.bos_id]] = -30.0
    seen, total, count, _ = _step(task, monkeypatch)
    drawn = seen.drawn.log_probs
    assert count == len(seen.log_probs) == int((drawn != 0).sum())
    torch.testing.assert_close(seen.log_probs.detach().sort().values, drawn[drawn != 0].sort().values)
    # Each caption's tokens together, so that no token has taken another caption's advantage.
    each = {round(value, 4) for value in seen.drawn.scores.flatten().tolist()}
    found = {
        round(seen.log_probs.detach()[seen.advantage == value].sum().item(), 4)
        for value in torch.unique(seen.advantage)
        if (seen.advantage == value).sum() < 9
    }
    assert found <= each | {round(a + b, 4) for a in each for b in each}
    torch.testing.assert_close(total, -(seen.log_probs * seen.advantage).sum())
    assert task.model.training


def test_rewards_are_the_cider_d_of_the_samples_words_with_their_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = _task(world)
    seen, _, _, parts = _step(task, monkeypatch)
    scorer, vocabulary = CiderD(task.train.captions.words, with_end=True), task.vocabulary
    batch = next(task.batches(0, 0))
    scores = []
    for picture, captions in zip(batch.indices, seen.drawn.token_ids.tolist(), strict=True):
        for ids in captions:
            ends = vocabulary.eos_id in ids
            words = [vocabulary.words[i] for i in (ids[: ids.index(vocabulary.eos_id)] if ends else ids)]
            encoded = scorer.encode(words)
            scores.append(scorer.score([picture], [encoded if ends else encoded[:-1]])[0])
    assert parts["sample_cider_d"] == pytest.approx(np.mean(scores))
    assert set(parts) == {"sample_cider_d", "greedy_cider_d"}


def test_the_other_samples_are_a_baseline_without_greedy_captions(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = _task(world, replace(LOSSES, baseline="other_samples"))
    seen, total, _, parts = _step(task, monkeypatch)
    assert set(parts) == {"sample_cider_d"}
    total.backward()  # type: ignore[no-untyped-call]
    assert all(value.grad is not None for value in task.model.parameters())
    assert torch.isfinite(seen.advantage).all()


def test_advantages_by_hand() -> None:
    scores, greedy = torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([2.0])
    assert advantages(scores, greedy, "greedy").tolist() == [[-1.0, 0.0, 4.0]]
    assert advantages(scores, None, "other_samples").tolist() == [[-3.0, -1.5, 4.5]]
    assert advantages(scores, None, "best_of_n").tolist() == [[0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing must be in"),
        ({"samples_per_image": 0}, "samples_per_image must be at least 1"),
        ({"baseline": "other_samples", "samples_per_image": 1}, "needs samples_per_image of at least 2"),
        ({"self_critical_lr": -1.0}, "self_critical_lr must be 0 or more"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CaptionLossConfig(**settings)


def test_the_gradient_is_that_of_the_expected_reward(world: World) -> None:
    """One word or the end: few enough outcomes to take the expectation over all of them.

    Padding and begin are never drawn, and a fresh model gives them as much as any word: nothing may pull at them, or
    samples that are worse than the greedy caption raise them without end.
    """
    task = build_caption_task(
        world.tables, world.store, model=MODEL, data=replace(DATA, max_length=1),
        losses=replace(LOSSES, samples_per_image=4000), device=CPU,
    )  # fmt: skip
    batch, model, vocabulary = next(task.batches(0, 0)), task._network, task.vocabulary
    never = [vocabulary.pad_id, vocabulary.bos_id]
    torch.manual_seed(0)
    total, count, _ = task.loss(batch, step=0, epoch=0)
    (total / count).backward()  # type: ignore[no-untyped-call]
    scorer, expected = CiderD(task.train.captions.words, with_end=True), torch.zeros(len(vocabulary))
    with torch.no_grad():
        encoded = model.encode(batch.regions)
        state = model.initial_state(len(batch.indices), encoded.mean_gates)
        begin = torch.full((len(batch.indices),), vocabulary.bos_id)
        state, _ = model.step(encoded, model.gates_of_words(begin), state)
        logits = model.logits(state.language_hidden)
        logits[:, never] = -torch.inf
        probabilities = logits.softmax(-1)
    for picture, probs in zip(batch.indices, probabilities, strict=True):
        outcomes = [scorer.encode([word])[:1] for word in vocabulary.words]
        outcomes[vocabulary.eos_id] = scorer.encode([])
        rewards = torch.from_numpy(scorer.score([picture] * len(outcomes), outcomes)).float()
        expected -= probs * (rewards - (probs * rewards).sum()) / len(batch.indices)
    assert expected.abs().max() > 0.01
    assert model.classifier.bias.grad is not None
    torch.testing.assert_close(model.classifier.bias.grad, expected, atol=0.006, rtol=0.1)
    assert model.classifier.bias.grad[never].tolist() == [0.0, 0.0]
