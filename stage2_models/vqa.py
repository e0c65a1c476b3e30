"""The models that answer questions about a picture's regions.

Two forms. "paper" is that of Anderson et al. 2018, sec. 3.3: gated tanh layers, additive attention over the
regions, sigmoid scores. "binding" multiplies region and question in the attention, looks twice and counts
without counting twice: it learns in a minute which colour belongs to which object, where the paper's form
needs hours (docs/decisions, DESIGN §7). Both read the question with a GRU; both return the unnormalised
attention of every region beside the weights. Everything that does not depend on the question (region input,
overlaps) is computed once a batch, and the projection of [v_i, q] as the sum of two projections.
Legend: B questions, T words, K region slots, D region feature, H hidden, G glimpses, A answers.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from stage2_models.attention import Normalisation, normalise_logits
from stage2_models.counting import COUNT_DIM, RegionCounter, describe_counts, pairwise_iou
from stage2_models.loading.batch import RegionBatch
from stage2_models.question_gru import last_states
from stage2_models.regions import RegionInput
from store_schema.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class VqaConfig:
    """What is built. The defaults are the paper's model; `VqaConfig.binding()` is the other."""

    form: Literal["paper", "binding"] = "paper"
    question_only: bool = False
    """Sees no regions at all: the baseline that says how far the questions alone lead."""
    embed_dim: int = 300
    hidden_dim: int = 512
    use_geometry: bool = False
    """Append eight numbers that say where the box lies to each region's feature."""
    normalise_features: bool = True
    """Z-score features by statistics of the training pictures. Without effect where no regions are seen."""
    glimpses: int = 1
    """How many attention maps are made of one question; the paper's form has one."""
    count: bool = False
    """Give the number of attended objects to the joint layer; binding form only."""
    attention_normalise: Normalisation = "softmax"
    """"softmax" over the real regions, or "none": the unnormalised weights themselves."""
    loss: Literal["bce", "ce"] = "bce"
    """"bce": every answer a yes or no, soft targets (the paper). "ce": one answer, targets scaled to sum 1."""
    dropout: float = 0.0
    """On the joint representation, before the answers."""

    def __post_init__(self) -> None:
        for name in ("embed_dim", "hidden_dim", "glimpses"):
            if getattr(self, name) < 1:
                raise ConfigError(f"vqa model: {name} must be at least 1, it is {getattr(self, name)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"vqa model: dropout must be in [0, 1), it is {self.dropout}")
        choices = (
            ("form", ("paper", "binding")),
            ("loss", ("bce", "ce")),
            ("attention_normalise", ("softmax", "none")),
        )
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"vqa model: {name} must be one of {allowed}, it is {getattr(self, name)!r}"
                )
        if self.form == "paper" and (self.glimpses != 1 or self.count):
            raise ConfigError(
                f"vqa model: the paper's form has one glimpse and no count, asked for are glimpses="
                f"{self.glimpses} and count={self.count}; take form='binding' for these"
            )
        if self.question_only and (self.glimpses != 1 or self.count or self.use_geometry):
            raise ConfigError(
                "vqa model: question_only sees no regions, so glimpses, count and use_geometry have no effect; "
                "leave them at their defaults"
            )

    @classmethod
    def binding(cls) -> Self:
        """The form that binds attributes to objects within a minute of training (DESIGN §7)."""
        return cls(
            form="binding",
            embed_dim=128,
            hidden_dim=128,
            use_geometry=True,
            glimpses=2,
            count=True,
            loss="ce",
        )

    def without_regions(self) -> Self:
        """The question-only baseline of this model: same question encoder, loss and sizes."""
        return replace(
            self,
            question_only=True,
            glimpses=1,
            count=False,
            use_geometry=False,
            attention_normalise="softmax",
        )


class VqaOutput(NamedTuple):
    """What the model says about B questions; the last three are None for a question-only model."""

    answer_logits: Tensor
    """[B, A]; `answer_scores` turns them into scores."""
    attention_logits: Tensor | None
    """[B, G, K], the unnormalised weight of each region, 0 at padded slots."""
    attention_weights: Tensor | None
    """[B, G, K], 0 at padded slots; sums to 1 over the real regions unless attention_normalise is "none"."""
    counts: Tensor | None
    """[B, G], the number of attended objects; None also without `count`."""


class VqaModel(nn.Module):
    """Answers questions; see `VqaConfig` for the forms.

    Args:
        config: what is built.
        feature_dim: D of the store; unused by a question-only model.
        vocabulary_size: words of the questions' vocabulary, special ones included.
        pad_id: the padding word's id; its embedding stays zero.
        num_answers: A.
    """

    def __init__(
        self, config: VqaConfig, *, feature_dim: int, vocabulary_size: int, pad_id: int, num_answers: int
    ) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_dim
        self.question = QuestionEncoder(vocabulary_size, config.embed_dim, hidden, pad_id)
        self.region_input: RegionInput | None = None
        self.answerer: PaperAnswerer | BindingAnswerer | QuestionOnlyAnswerer
        if config.question_only:
            self.answerer = QuestionOnlyAnswerer(config, num_answers)
            return
        self.region_input = RegionInput(
            feature_dim, normalise=config.normalise_features, use_geometry=config.use_geometry
        )
        kind = PaperAnswerer if config.form == "paper" else BindingAnswerer
        self.answerer = kind(config, self.region_input.out_dim, num_answers)

    def forward(self, token_ids: Tensor, lengths: Tensor, regions: RegionBatch | None) -> VqaOutput:
        """Answer a batch of questions.

        Args:
            token_ids: [B, T] int64, padded on the right.
            lengths: [B] int64, number of words of each question.
            regions: of the B questions' pictures; a question-only model ignores them.
        """
        question = self.question(token_ids, lengths)
        if isinstance(self.answerer, QuestionOnlyAnswerer):
            return VqaOutput(self.answerer(question), None, None, None)
        assert regions is not None
        assert self.region_input is not None
        mask = regions.mask
        values = self.region_input(regions.features, regions.boxes, regions.sizes, mask)
        output: VqaOutput = self.answerer(question, values, regions.boxes, mask)
        return output

    def answer_scores(self, answer_logits: Tensor) -> Tensor:
        """Turn logits [..., A] into scores in 0..1; with cross entropy they sum to 1."""
        return answer_logits.softmax(-1) if self.config.loss == "ce" else answer_logits.sigmoid()


def answer_loss(answer_logits: Tensor, labels: Tensor, scores: Tensor, kind: Literal["bce", "ce"]) -> Tensor:
    """Compare logits with soft targets that are given sparsely; nothing of the size [B, A] is made for them.

    "bce": binary cross entropy summed over all answers, since BCE(x, t) = softplus(x) - x t.
    "ce": cross entropy against the scores scaled to sum 1; a question without a known answer gives 0.

    Args:
        answer_logits: [B, A] float.
        labels: [B, M] int64, the question's known answers, each once; 0 where there are fewer than M.
        scores: [B, M] float, their soft scores; 0 where there are fewer.

    Returns:
        The loss summed over the batch, a scalar.
    """
    if kind == "bce":
        hits = answer_logits.gather(1, labels)
        return functional.softplus(answer_logits).sum() - (hits * scores).sum()
    shares = scores / scores.sum(1, keepdim=True).clamp(min=1e-6)
    return -(answer_logits.log_softmax(1).gather(1, labels) * shares).sum()


class QuestionEncoder(nn.Module):
    """Reads a question with a GRU over learned word embeddings; its state at the last word is the question.

    Padding on the right changes nothing; a question without words is a zero vector.
    """

    def __init__(self, vocabulary_size: int, embed_dim: int, hidden_dim: int, pad_id: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embed_dim, padding_idx=pad_id)
        self.gru = nn.GRU(embed_dim, hidden_dim, batch_first=True)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Encode token_ids [B, T] of the given lengths [B] as [B, H]."""
        return last_states(self.gru, self.embedding, token_ids, lengths)


class GatedTanh(nn.Module):
    """The paper's non-linear layer f(x) = tanh(W x + b) * sigmoid(W' x + b'), both products in one."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, 2 * out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_dim] to [..., out_dim]."""
        return gated_tanh(self.linear(x))


def gated_tanh(both: Tensor) -> Tensor:
    """Combine the two projections [..., 2 H] of a gated tanh layer to [..., H]."""
    value, gate = both.chunk(2, -1)
    return value.tanh() * gate.sigmoid()


class PaperAnswerer(nn.Module):
    """Anderson et al. 2018, sec. 3.3:

        a_i = w . f_a([v_i, q]), softmax over i;  h = f_q(q) * f_v(sum_i a_i v_i);  s = sigmoid(W_o f_o(h))

    with gated tanh layers f. The layer over [v_i, q] is the sum of a projection of v_i and one of q.
    """

    def __init__(self, config: VqaConfig, region_dim: int, num_answers: int) -> None:
        super().__init__()
        hidden = config.hidden_dim
        self.normalise = config.attention_normalise
        self.attention_region = nn.Linear(region_dim, 2 * hidden)
        self.attention_question = nn.Linear(hidden, 2 * hidden, bias=False)
        self.attention_score = nn.Linear(hidden, 1)
        self.joint_question = GatedTanh(hidden, hidden)
        self.joint_regions = GatedTanh(region_dim, hidden)
        self.joint = GatedTanh(hidden, hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.answers = nn.Linear(hidden, num_answers)

    def forward(self, question: Tensor, regions: Tensor, boxes: Tensor, mask: Tensor) -> VqaOutput:
        """Answer question [B, H] from regions [B, K, D]; boxes are not looked at; mask [B, K]."""
        both = self.attention_region(regions) + self.attention_question(question).unsqueeze(1)  # [B, K, 2 H]
        logits = self.attention_score(gated_tanh(both)).transpose(1, 2)  # [B, 1, K]
        logits = logits.masked_fill(~mask.unsqueeze(1), 0.0)
        weights = normalise_logits(logits, mask.unsqueeze(1), self.normalise)
        attended = torch.bmm(weights, regions).squeeze(1)  # [B, D]
        joint = self.joint(self.joint_question(question) * self.joint_regions(attended))
        return VqaOutput(self.answers(self.dropout(joint)), logits, weights, None)


class BindingAnswerer(nn.Module):
    """Product attention with several glimpses and their counts:

    l_gi = w_g . (W_v v_i * W_q q), softmax over i;  v_g = sum_i a_gi v_i;  o_g = count from l_g
    h = relu(W q) * relu(W' [v_1; ..; v_G; o_1; ..; o_G]);  s = W_o h
    """

    def __init__(self, config: VqaConfig, region_dim: int, num_answers: int) -> None:
        super().__init__()
        hidden, glimpses = config.hidden_dim, config.glimpses
        self.normalise = config.attention_normalise
        self.attention_region = nn.Linear(region_dim, hidden)
        self.attention_question = nn.Linear(hidden, hidden)
        self.attention_score = nn.Linear(hidden, glimpses)
        self.counter = RegionCounter() if config.count else None
        seen_dim = glimpses * (region_dim + (COUNT_DIM if config.count else 0))
        self.joint_question = nn.Linear(hidden, hidden)
        self.joint_regions = nn.Linear(seen_dim, hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.answers = nn.Linear(hidden, num_answers)

    def forward(self, question: Tensor, regions: Tensor, boxes: Tensor, mask: Tensor) -> VqaOutput:
        """Answer question [B, H] from regions [B, K, D] in boxes [B, K, 4]; mask [B, K]."""
        product = self.attention_region(regions) * self.attention_question(question).unsqueeze(1)  # [B, K, H]
        logits = self.attention_score(product).transpose(1, 2)  # [B, G, K]
        logits = logits.masked_fill(~mask.unsqueeze(1), 0.0)
        weights = normalise_logits(logits, mask.unsqueeze(1), self.normalise)
        seen = [torch.bmm(weights, regions).flatten(1)]  # [B, G D]
        counts = None
        if self.counter is not None:
            counts = self.counter(logits, pairwise_iou(boxes), mask)  # [B, G]
            seen.append(describe_counts(counts).flatten(1))  # [B, G 8]
        joint = self.joint_question(question).relu() * self.joint_regions(torch.cat(seen, 1)).relu()
        return VqaOutput(self.answers(self.dropout(joint)), logits, weights, counts)


class QuestionOnlyAnswerer(nn.Module):
    """The form's own joint layer without the regions' factor: answers from the question alone."""

    def __init__(self, config: VqaConfig, num_answers: int) -> None:
        super().__init__()
        hidden = config.hidden_dim
        self.joint = (
            GatedTanh(hidden, hidden)
            if config.form == "paper"
            else nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU())
        )
        self.dropout = nn.Dropout(config.dropout)
        self.answers = nn.Linear(hidden, num_answers)

    def forward(self, question: Tensor) -> Tensor:
        """Give the answers' logits [B, A] for question [B, H]."""
        logits: Tensor = self.answers(self.dropout(self.joint(question)))
        return logits
