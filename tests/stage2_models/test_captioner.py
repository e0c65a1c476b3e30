"""The captioner against the textbook form, and what must not change a result."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stage2_models.attention import AdditiveAttention, ProductAttention
from stage2_models.caption_tokens import CaptionTokens
from stage2_models.captioner import Captioner, CaptionerConfig, build_captioner
from stage2_models.loading.batch import RegionBatch
from stage2_models.regions import box_geometry
from stage2_models.vocabulary import Vocabulary
from store_schema.errors import ConfigError

VOCABULARY = Vocabulary.build([list("abcdefgh")])
PAPER = CaptionerConfig(hidden_dim=6, embed_dim=4, attention_dim=5)
OURS = replace(PAPER, use_geometry=True, normalise_features=True)
WIDELY_USED = replace(PAPER, embed_regions=True, dropout=0.5)
BINDING = replace(OURS, attention="product", glimpses=2, likenesses=2)
D = 7


def _regions(counts: list[int], slots: int, seed: int = 0) -> RegionBatch:
    generator = torch.Generator().manual_seed(seed)
    num = torch.tensor(counts)
    real = (torch.arange(slots) < num.unsqueeze(1)).unsqueeze(-1)
    corner = torch.rand(len(counts), slots, 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + 5], -1) * real
    features = (torch.randn(len(counts), slots, D, generator=generator) * real).half()
    return RegionBatch(features, boxes, torch.full((len(counts), 2), 40.0), num)


def _captions(lengths: list[list[int]], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    counts = np.array(lengths)
    ids = rng.integers(4, len(VOCABULARY), (*counts.shape, counts.max()))
    return ids, counts


def _build(config: CaptionerConfig) -> Captioner:
    torch.manual_seed(1)
    model = build_captioner(config, feature_dim=D, vocabulary_size=len(VOCABULARY)).eval()
    if model.region_input.statistics is not None:
        model.region_input.statistics.mean.normal_()
        model.region_input.statistics.deviation.uniform_(0.5, 2.0)
    return model


def _textbook_loss(
    model: Captioner, regions: RegionBatch, ids: np.ndarray, lengths: np.ndarray
) -> torch.Tensor:
    """One picture, one caption, one step at a time; X @ W_xh + H @ W_hh instead of [X, H] @ [W_xh; W_hh]."""
    total = torch.zeros(())
    for b, captions in enumerate(ids):
        count = int(regions.num_regions[b])
        values = regions.features[b, :count].float()
        if model.region_input.statistics is not None:
            values = (values - model.region_input.statistics.mean) / model.region_input.statistics.deviation
        if model.region_input.use_geometry:
            everywhere = torch.ones(1, count, dtype=torch.bool)
            geometry = box_geometry(regions.boxes[b : b + 1, :count], regions.sizes[b : b + 1], everywhere)[0]
            values = torch.cat([values, 3.0 * geometry], 1)
        if model.likeness is not None:
            real = torch.ones(1, count, dtype=torch.bool)
            values = torch.cat(
                [values, model.likeness(values[None], regions.boxes[b : b + 1, :count], real)[0]], 1
            )
        mean = values.mean(0) if count else torch.zeros(values.shape[1])
        if model.region_embedding is not None and model.mean_embedding is not None:
            values, mean = F.relu(model.region_embedding(values)), F.relu(model.mean_embedding(mean))
        for caption, length in zip(captions, lengths[b], strict=True):
            words = [VOCABULARY.bos_id, *caption[:length], VOCABULARY.eos_id]
            h1 = c1 = h2 = c2 = torch.zeros(model.hidden_dim)
            for word, following in itertools.pairwise(words):
                embedded = model.word_embedding.weight[word]
                if model.embeds:
                    embedded = F.relu(embedded)
                hh1, hh2 = model.attention_recurrence.weight.chunk(2, 1)
                gates = model.word_gates(embedded) + model.mean_gates(mean) + hh1 @ h1 + hh2 @ h2
                h1, c1 = _cell(gates, c1)
                attended = _attended(model.attention, values, h1)
                hh1, hh2 = model.language_recurrence.weight.chunk(2, 1)
                seen = sum(
                    weight @ value
                    for weight, value in zip(
                        model.region_gates.weight.chunk(len(attended)), attended, strict=True
                    )
                )
                gates = seen + hh1 @ h1 + hh2 @ h2 + model.language_recurrence.bias
                h2, c2 = _cell(gates, c2)
                total = total - model.logits(h2).log_softmax(0)[following]
    return total


def _attended(
    attention: AdditiveAttention | ProductAttention, values: torch.Tensor, query: torch.Tensor
) -> list[torch.Tensor]:
    """What each glimpse sees of regions [K, D]; zeros where there are none."""
    if not len(values):
        return [torch.zeros(values.shape[1])] * attention.score.out_features
    compared = []
    for value in values:
        of_region, of_query = attention.region(value), attention.query(query)
        is_product = isinstance(attention, ProductAttention)
        compared.append(
            attention.score(of_region * of_query if is_product else torch.tanh(of_region + of_query))
        )
    return [weights @ values for weights in torch.stack(compared).softmax(0).t()]


def _cell(gates: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    enter, forget, leave, candidate = gates.chunk(4)
    cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def _loss(model: Captioner, regions: RegionBatch, ids: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    tokens = CaptionTokens.from_arrays(ids, lengths, VOCABULARY)
    return F.cross_entropy(model(regions, tokens), tokens.targets, reduction="sum")


@pytest.mark.parametrize(
    "config", [PAPER, OURS, WIDELY_USED, BINDING], ids=["paper", "ours", "widely used", "binding"]
)
def test_loss_and_gradients_equal_the_textbook_form(config: CaptionerConfig) -> None:
    model = _build(config)
    regions, (ids, lengths) = _regions([3, 0, 2], 4), _captions([[2, 4], [1, 3], [5, 0]])
    expected, found = _textbook_loss(model, regions, ids, lengths), _loss(model, regions, ids, lengths)
    torch.testing.assert_close(found, expected)
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(expected, parameters)
    for one, other in zip(torch.autograd.grad(found, parameters), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [OURS, BINDING], ids=["ours", "binding"])
def test_more_padding_does_not_change_the_loss(config: CaptionerConfig) -> None:
    model = _build(config)
    ids, lengths = _captions([[2, 4], [1, 3]])
    longer = np.concatenate([ids, np.zeros((2, 2, 3), dtype=ids.dtype)], 2)
    few, many = _regions([3, 1], 3), _regions([3, 1], 3)
    pad = (0, 0, 0, 4)
    many.features, many.boxes = F.pad(many.features, pad), F.pad(many.boxes, pad)
    torch.testing.assert_close(_loss(model, few, ids, lengths), _loss(model, many, longer, lengths))


@pytest.mark.parametrize("config", [OURS, BINDING], ids=["ours", "binding"])
def test_captions_that_share_a_picture_equal_copies_of_it(config: CaptionerConfig) -> None:
    model = _build(config)
    regions, (ids, lengths) = _regions([3, 2], 3), _captions([[2, 4, 1], [1, 3, 3]])
    copies = RegionBatch(*(value.repeat_interleave(3, 0) for value in regions._tensors()))
    shared = _loss(model, regions, ids, lengths)
    torch.testing.assert_close(shared, _loss(model, copies, ids.reshape(6, 1, -1), lengths.reshape(6, 1)))


def test_gates_looked_up_equal_gates_computed_for_each_word() -> None:
    model = _build(WIDELY_USED)
    many = torch.arange(len(VOCABULARY)).repeat(3)
    looked_up = model.gates_of_words(many)
    computed = torch.cat([model.gates_of_words(part) for part in torch.split(many, 4)])
    torch.testing.assert_close(looked_up, computed)


def test_dropout_differs_between_equal_words_in_training() -> None:
    model = _build(WIDELY_USED).train()
    tokens = 3 * len(VOCABULARY)
    masks = model.draw_masks(tokens, model.encode(_regions([2], 2)))
    gates = model.gates_of_words(torch.full((tokens,), 5), masks.words)
    assert not torch.equal(gates[0], gates[1])
    outputs = masks.outputs
    assert outputs is not None
    assert set(outputs.flatten().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("config", [OURS, BINDING], ids=["ours", "binding"])
def test_step_by_step_equals_all_at_once(config: CaptionerConfig) -> None:
    model = _build(config)
    regions, (ids, lengths) = _regions([3, 2], 3), _captions([[3, 3], [3, 3]])
    tokens = CaptionTokens.from_arrays(ids, lengths, VOCABULARY)
    with torch.no_grad():
        encoded = model.encode(regions)
        outputs = model.outputs(encoded, tokens.inputs, tokens.captions_per_step).view(4, 4, -1)
        state = model.initial_state(4, outputs)
        for step, words in enumerate(tokens.inputs.view(4, 4)):
            state, weights = model.step(encoded, model.gates_of_words(words), state)
            torch.testing.assert_close(state.language_hidden, outputs[step])
            assert weights.shape == (2, 2, 3)
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2))


def test_bfloat16_autocast_gives_nearly_the_same_loss_and_float32_gradients() -> None:
    model = _build(PAPER)
    regions, (ids, lengths) = _regions([3, 2], 3), _captions([[2, 4], [1, 3]])
    exact = _loss(model, regions, ids, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = _loss(model, regions, ids, lengths)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert model.language_recurrence.weight.grad is not None
    assert model.language_recurrence.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(("key", "value"), [("hidden_dim", 0), ("dropout", 1.0), ("likenesses", -1)])
def test_wrong_settings_are_named(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be .* it is {value}"):
        CaptionerConfig(**{key: value})  # type: ignore[arg-type]


def test_several_glimpses_need_product_attention() -> None:
    with pytest.raises(ConfigError, match="2 glimpses need attention = 'product'"):
        CaptionerConfig(glimpses=2)
