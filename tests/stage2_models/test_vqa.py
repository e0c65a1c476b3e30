"""The VQA models against loops, against padding, and their losses by hand."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stage2_models.counting import describe_counts, pairwise_iou
from stage2_models.loading.batch import RegionBatch
from stage2_models.vqa import VqaModel, answer_loss
from stage2_models.vqa_answerers import BindingAnswerer, GatedTanh, PaperAnswerer, ReluAnswerer
from stage2_models.vqa_config import VqaConfig
from store_schema.errors import ConfigError

FEATURE_DIM, NUM_WORDS, NUM_ANSWERS = 6, 11, 5
PAPER = VqaConfig(embed_dim=4, hidden_dim=8, use_geometry=True)
BINDING = replace(VqaConfig.binding(), embed_dim=4, hidden_dim=8)
RELU = VqaConfig(form="relu-product", embed_dim=4, hidden_dim=8, question_slots=6)
FORMS = [
    pytest.param(PAPER, id="paper"),
    pytest.param(RELU, id="relu-product"),
    pytest.param(replace(RELU, form="relu-additive"), id="relu-additive"),
    pytest.param(BINDING, id="binding"),
]


def build(config: VqaConfig) -> VqaModel:
    torch.manual_seed(0)
    model = VqaModel(
        config, feature_dim=FEATURE_DIM, vocabulary_size=NUM_WORDS, pad_id=0, num_answers=NUM_ANSWERS
    )
    return model.eval()


def make_regions(num_slots: int = 4) -> RegionBatch:
    """Three pictures with 4, 2 and 0 regions."""
    generator = torch.Generator().manual_seed(1)
    num_regions = torch.tensor([4, 2, 0])
    real = torch.arange(num_slots) < num_regions[:, None]
    features, boxes = torch.zeros(3, num_slots, FEATURE_DIM), torch.zeros(3, num_slots, 4)
    features[:, :4] = torch.randn(3, 4, FEATURE_DIM, generator=generator)
    low = torch.rand(3, 4, 2, generator=generator) * 50
    boxes[:, :4] = torch.cat([low, low + 5 + torch.rand(3, 4, 2, generator=generator) * 40], -1)
    return RegionBatch(
        features=features * real[..., None],
        boxes=boxes * real[..., None],
        sizes=torch.full((3, 2), 100.0),
        num_regions=num_regions,
    )


def make_questions(num_words: int = 5) -> tuple[Tensor, Tensor]:
    """Three questions of 5, 3 and 1 words."""
    token_ids = torch.zeros(3, num_words, dtype=torch.int64)
    token_ids[0, :5] = torch.tensor([4, 5, 6, 7, 8])
    token_ids[1, :3] = torch.tensor([9, 4, 10])
    token_ids[2, :1] = torch.tensor([5])
    return token_ids, torch.tensor([5, 3, 1])


@torch.no_grad()
def test_paper_form_equals_its_formulas_region_by_region() -> None:
    model = build(PAPER)
    answerer = model.answerer
    assert isinstance(answerer, PaperAnswerer)
    assert model.region_input is not None
    regions = make_regions()
    output = model(*make_questions(), regions)
    assert output.attention_logits is not None
    assert output.attention_weights is not None
    values = model.region_input(regions.features, regions.boxes, regions.sizes, regions.mask)
    question = model.question(*make_questions())

    # f_a over the joined [v_i, q], as the paper writes it.
    joined_layer = GatedTanh(values.shape[-1] + 8, 8)
    joined_layer.linear.weight.copy_(
        torch.cat([answerer.attention_region.weight, answerer.attention_question.weight], 1)
    )
    joined_layer.linear.bias.copy_(answerer.attention_region.bias)
    for picture, count in enumerate([4, 2]):
        scores = [
            answerer.attention_score(joined_layer(torch.cat([values[picture, i], question[picture]]))).item()
            for i in range(count)
        ]
        total = sum(math.exp(score) for score in scores)
        weights = [math.exp(score) / total for score in scores]
        attended = sum((w * values[picture, i] for i, w in enumerate(weights)), torch.zeros(values.shape[-1]))
        joint = answerer.joint_question(question[picture]) * answerer.joint_regions(attended)
        logits = answerer.answers(answerer.joint(joint))
        assert output.attention_logits[picture, 0, :count].tolist() == pytest.approx(scores, abs=1e-5)
        assert output.attention_weights[picture, 0, :count].tolist() == pytest.approx(weights, abs=1e-5)
        assert output.answer_logits[picture].tolist() == pytest.approx(logits.tolist(), abs=1e-5)


@torch.no_grad()
def test_question_slots_are_zero_vectors_before_the_words() -> None:
    encoder = build(RELU).question
    token_ids, lengths = make_questions()
    for row, length in enumerate(lengths.tolist()):
        embedded = torch.zeros(1, 6, 4)
        embedded[0, 6 - length :] = encoder.embedding(token_ids[row, :length])
        expected = encoder.gru(embedded)[1][0, 0]
        assert torch.allclose(encoder(token_ids, lengths)[row], expected, atol=1e-6)
    assert not torch.allclose(
        encoder(token_ids, lengths), build(PAPER).question(token_ids, lengths), atol=1e-3
    )


@torch.no_grad()
def test_gated_tanh_by_hand() -> None:
    layer = GatedTanh(1, 1)
    layer.linear.weight.copy_(torch.tensor([[2.0], [3.0]]))
    layer.linear.bias.copy_(torch.tensor([0.5, -1.0]))
    assert layer(torch.tensor([0.25])).item() == pytest.approx(
        math.tanh(1.0) / (1 + math.exp(0.25)), rel=1e-6
    )


@torch.no_grad()
def test_binding_form_equals_its_formulas_region_by_region() -> None:
    model = build(BINDING)
    answerer = model.answerer
    assert isinstance(answerer, BindingAnswerer)
    assert model.region_input is not None
    assert answerer.counter is not None
    regions = make_regions()
    output = model(*make_questions(), regions)
    assert output.attention_logits is not None
    assert output.counts is not None
    values = model.region_input(regions.features, regions.boxes, regions.sizes, regions.mask)
    question = model.question(*make_questions())
    for picture, count in enumerate([4, 2]):
        asked = answerer.attention_question(question[picture])
        logits = torch.stack(
            [
                answerer.attention_score(answerer.attention_region(values[picture, i]) * asked)
                for i in range(count)
            ],
            1,
        )  # [G, n]
        attended = [sum(w * values[picture, i] for i, w in enumerate(row)) for row in logits.softmax(1)]
        alone = torch.ones(1, count, dtype=torch.bool)
        counts = answerer.counter(
            logits[None], pairwise_iou(regions.boxes[picture : picture + 1, :count]), alone
        )
        seen = torch.cat([*attended, *describe_counts(counts[0])])
        joint = answerer.joint_question(question[picture]).relu() * answerer.joint_regions(seen).relu()
        assert torch.allclose(output.attention_logits[picture, :, :count], logits, atol=1e-5)
        assert torch.allclose(output.counts[picture], counts[0], atol=1e-5)
        assert torch.allclose(output.answer_logits[picture], answerer.answers(joint), atol=1e-5)


@pytest.mark.parametrize("config", FORMS)
@torch.no_grad()
def test_padding_of_regions_and_words_changes_nothing(config: VqaConfig) -> None:
    model = build(config)
    plain = model(*make_questions(), make_regions())
    padded_regions = make_regions(num_slots=7)
    padded_regions.features[0, 4:] = 100.0  # what lies in a padded slot must not matter
    padded_regions.boxes[0, 4:] = torch.tensor([0.0, 0, 99, 99])
    padded = model(*make_questions(num_words=9), padded_regions)
    assert torch.allclose(plain.answer_logits, padded.answer_logits, atol=1e-6)
    assert torch.allclose(plain.attention_weights, padded.attention_weights[..., :4], atol=1e-6)
    assert not padded.attention_weights[0, :, 4:].any()
    assert not padded.attention_logits[0, :, 4:].any()


@pytest.mark.parametrize("config", FORMS)
@torch.no_grad()
def test_a_batch_answers_as_its_questions_alone(config: VqaConfig) -> None:
    model = build(config)
    token_ids, lengths = make_questions()
    regions = make_regions()
    together = model(token_ids, lengths, regions).answer_logits
    for index in range(3):
        one = slice(index, index + 1)
        alone = RegionBatch(
            regions.features[one], regions.boxes[one], regions.sizes[one], regions.num_regions[one]
        )
        logits = model(token_ids[one], lengths[one], alone).answer_logits
        assert torch.allclose(together[one], logits, atol=1e-6)


@pytest.mark.parametrize("config", FORMS)
def test_weights_sum_to_one_over_real_regions_and_empty_pictures_stay_finite(config: VqaConfig) -> None:
    model = build(config).train()
    output = model(*make_questions(), make_regions())
    sums = output.attention_weights.sum(-1)
    assert torch.allclose(sums, torch.tensor([[1.0], [1.0], [0.0]]).expand_as(sums))
    output.answer_logits.sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("config", FORMS)
@torch.no_grad()
def test_without_normalisation_the_weights_are_the_logits(config: VqaConfig) -> None:
    output = build(replace(config, attention_normalise="none"))(*make_questions(), make_regions())
    assert torch.equal(output.attention_weights, output.attention_logits)
    assert output.attention_logits[0].any()


@torch.no_grad()
def test_a_question_only_model_ignores_regions() -> None:
    for config in (PAPER, BINDING):
        model = build(config.without_regions())
        seeing, blind = model(*make_questions(), make_regions()), model(*make_questions(), None)
        assert torch.equal(seeing.answer_logits, blind.answer_logits)
        assert blind.attention_logits is None
        assert blind.counts is None


@torch.no_grad()
def test_a_question_without_words_is_answered_like_a_zero_state() -> None:
    model = build(PAPER)
    state = model.question(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0]))
    assert not state.any()


def test_float16_features_are_read_as_float32() -> None:
    regions = make_regions()
    regions.features = regions.features.half()
    output = build(BINDING)(*make_questions(), regions)
    assert output.answer_logits.dtype == torch.float32


def test_binary_loss_by_hand() -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0]])
    targets = [0.3, 0.0, 1.0]
    labels, scores = torch.tensor([[2, 0, 0]]), torch.tensor([[1.0, 0.3, 0.0]])
    expected = 0.0
    for x, t in zip(logits[0].tolist(), targets, strict=True):
        p = 1 / (1 + math.exp(-x))
        expected -= t * math.log(p) + (1 - t) * math.log(1 - p)
    assert answer_loss(logits, labels, scores, "bce").item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_by_hand_with_shared_targets() -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.0, 0.0]])
    labels, scores = torch.tensor([[2, 0], [0, 0]]), torch.tensor([[0.9, 0.3], [0.0, 0.0]])
    total = sum(math.exp(x) for x in logits[0].tolist())
    expected = -(0.75 * (2.0 - math.log(total)) + 0.25 * (0.5 - math.log(total)))
    # The second question has no known answer and adds nothing.
    assert answer_loss(logits, labels, scores, "ce").item() == pytest.approx(expected, rel=1e-6)


@torch.no_grad()
def test_scores_of_cross_entropy_sum_to_one_and_binary_ones_stand_alone() -> None:
    logits = torch.tensor([[0.0, 3.0, -2.0, 1.0, 0.5]])
    assert build(BINDING).answer_scores(logits).sum().item() == pytest.approx(1.0)
    assert build(PAPER).answer_scores(logits)[0, 0].item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "other"}, "form must be one of"),
        ({"hidden_dim": 0}, "hidden_dim must be at least 1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"loss": "mse"}, "loss must be one of"),
        ({"glimpses": 2}, "form='paper' has one glimpse"),
        ({"count": True}, "form='paper' has one glimpse"),
        ({"question_only": True, "use_geometry": True}, "question_only sees no regions"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VqaConfig(**changes)


@pytest.mark.parametrize("config", FORMS)
def test_questions_that_share_a_picture_are_answered_as_with_their_own_copies(config: VqaConfig) -> None:
    model = build(config)
    regions = make_regions()
    token_ids, lengths = make_questions()
    pictures = torch.tensor([1, 0, 2, 0, 0, 1])
    asked = torch.tensor([0, 1, 2, 0, 2, 1])
    token_ids, lengths = token_ids[asked], lengths[asked]
    copied = RegionBatch(*(getattr(regions, field.name)[pictures] for field in fields(regions)))
    factor = torch.randn(6, NUM_ANSWERS)
    results = []
    for batch, shared in ((regions, pictures), (copied, None)):
        output = model(token_ids, lengths, batch, shared)
        gradients = torch.autograd.grad(
            (output.answer_logits * factor).sum(), list(model.parameters()), allow_unused=True
        )
        results.append([*output, *gradients])
    for shared_value, copied_value in zip(*results, strict=True):
        if copied_value is None:
            assert shared_value is None
        else:
            assert torch.allclose(shared_value, copied_value, atol=2e-5)


@torch.no_grad()
def test_dropout_of_the_attention_acts_on_the_product_and_else_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(replace(RELU, attention_dropout=0.5))
    inputs = (*make_questions(), make_regions())
    expected = model(*inputs).attention_logits
    model.train()
    assert not torch.allclose(model(*inputs).attention_logits, expected)
    answerer = model.answerer
    assert isinstance(answerer, ReluAnswerer)
    monkeypatch.setattr(
        answerer.attention_dropout, "forward", lambda product: product * 2
    )  # in place of zeros
    doubled = model(*inputs).attention_logits
    bias = answerer.attention_score.bias
    mask = inputs[2].mask.unsqueeze(1)
    assert torch.allclose(doubled, torch.where(mask, 2 * expected - bias, 0.0), atol=1e-6)
