"""From a question's vector and a picture's regions to answers: the four forms of the VQA model.

The projection of [v_i, q] is computed as the sum of two projections, so that the question's part is not repeated
for every region. All return the unnormalised attention of every region beside the weights.
Legend: B questions, U pictures, Q most questions of one picture, K region slots, D region feature, H hidden,
G glimpses, A answers.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from stage2_models.attention import Normalisation, normalise_logits
from stage2_models.counting import COUNT_DIM, RegionCounter, describe_counts, pairwise_iou
from stage2_models.picture_groups import PictureGroups
from stage2_models.vqa_config import VqaConfig


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


@dataclass(frozen=True)
class Pictures:
    """The U pictures of a batch and which of its B questions are about which; each picture is projected once."""

    regions: Tensor
    """[U, K, D] float, zero at padded slots."""
    boxes: Tensor
    """[U, K, 4] float, pixels."""
    mask: Tensor
    """[U, K] bool, True where a region is real."""
    groups: PictureGroups

    def products(self, of_question: Tensor, of_regions: Tensor, score: nn.Linear) -> Tensor:
        """Score every region by score(of_question * of_regions), [B, G, K].

        As a product of matrices, since w . (r * q) = r . (w * q): nothing of the size [B, K, H] is made.

        Args:
            of_question: [B, H]. of_regions: [U, K, H]. score: a layer from H to G.
        """
        asked = of_question.unsqueeze(1) * score.weight  # [B, G, H]
        laid = self.groups.by_picture(asked).flatten(1, 2)  # [U, Q G, H]
        logits = torch.bmm(laid, of_regions.transpose(1, 2))
        logits = logits.view(len(laid), self.groups.most, -1, logits.shape[2])  # [U, Q, G, K]
        return self.groups.by_question(logits) + score.bias.unsqueeze(1)

    def weigh(self, logits: Tensor, normalise: Normalisation) -> tuple[Tensor, Tensor]:
        """Logits [B, G, K] with 0 at padded slots, and the weights made of them."""
        mask = self.groups.spread(self.mask).unsqueeze(1)
        logits = logits.masked_fill(~mask, 0.0)
        return logits, normalise_logits(logits, mask, normalise)

    def attend(self, weights: Tensor) -> Tensor:
        """Sum each question's regions by its weights [B, G, K]: [B, G, D]."""
        laid = self.groups.by_picture(weights).flatten(1, 2)  # [U, Q G, K]
        attended = torch.bmm(laid, self.regions)
        return self.groups.by_question(attended.view(len(laid), self.groups.most, -1, attended.shape[2]))


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

    def forward(self, question: Tensor, pictures: Pictures) -> VqaOutput:
        """Answer question [B, H]."""
        of_regions = pictures.groups.spread(self.attention_region(pictures.regions))
        both = of_regions + self.attention_question(question).unsqueeze(1)  # [B, K, 2 H]
        logits = self.attention_score(gated_tanh(both)).transpose(1, 2)  # [B, 1, K]
        logits, weights = pictures.weigh(logits, self.normalise)
        attended = pictures.attend(weights).squeeze(1)  # [B, D]
        joint = self.joint(self.joint_question(question) * self.joint_regions(attended))
        return VqaOutput(self.answers(self.dropout(joint)), logits, weights, None)


class ReluAnswerer(nn.Module):
    """The widely used simplification of the paper's form: ReLU layers with weight normalisation.

        "relu-product":  l_i = w . drop(f_v(v_i) * f_q(q));  "relu-additive":  l_i = w . f([v_i, q])
        h = f_q'(q) * f_v'(sum_i a_i v_i);  s = W_o drop(f_o(h)), f_o of twice the width

    with f(x) = relu(W x + b), and every matrix W = g V / ||V|| with one length g and the Frobenius norm.

    Source: the README of hengyuan-hu/bottom-up-attention-vqa, whose checkpoints load into this form.
    """

    def __init__(self, config: VqaConfig, region_dim: int, num_answers: int) -> None:
        super().__init__()
        hidden = config.hidden_dim
        self.normalise = config.attention_normalise
        self.region_dim = region_dim
        self.attention_region: nn.Linear | None = None
        if config.form == "relu-product":
            self.attention_region = _weight_norm(region_dim, hidden)
            self.attention_question = _weight_norm(hidden, hidden)
        else:
            self.attention_both = _weight_norm(region_dim + hidden, hidden)
        self.attention_dropout = nn.Dropout(config.attention_dropout)
        self.attention_score = _weight_norm(hidden, 1)
        self.joint_question = _weight_norm(hidden, hidden)
        self.joint_regions = _weight_norm(region_dim, hidden)
        self.joint = _weight_norm(hidden, 2 * hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.answers = _weight_norm(2 * hidden, num_answers)

    def forward(self, question: Tensor, pictures: Pictures) -> VqaOutput:
        """Answer question [B, H]."""
        logits, weights = pictures.weigh(self._compare(question, pictures), self.normalise)
        attended = pictures.attend(weights).squeeze(1)  # [B, D]
        joint = self.joint_question(question).relu() * self.joint_regions(attended).relu()
        return VqaOutput(self.answers(self.dropout(self.joint(joint).relu())), logits, weights, None)

    def _compare(self, question: Tensor, pictures: Pictures) -> Tensor:
        """The unnormalised weight of every region, [B, 1, K]."""
        if self.attention_region is not None:
            of_question = self.attention_question(question).relu()
            of_regions = self.attention_region(pictures.regions).relu()
            if not (self.training and self.attention_dropout.p):
                return pictures.products(of_question, of_regions, self.attention_score)
            compared = self.attention_dropout(pictures.groups.spread(of_regions) * of_question.unsqueeze(1))
        else:
            weight, bias = self.attention_both.weight, self.attention_both.bias
            of_regions = functional.linear(pictures.regions, weight[:, : self.region_dim])
            of_question = functional.linear(question, weight[:, self.region_dim :], bias)
            compared = (pictures.groups.spread(of_regions) + of_question.unsqueeze(1)).relu()  # [B, K, H]
        logits: Tensor = self.attention_score(compared).transpose(1, 2)
        return logits


def _weight_norm(in_dim: int, out_dim: int) -> nn.Linear:
    """A linear layer whose matrix is a direction and one length for all of it."""
    layer: nn.Linear = weight_norm(nn.Linear(in_dim, out_dim), dim=None)  # type: ignore[arg-type]  # stub
    return layer


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

    def forward(self, question: Tensor, pictures: Pictures) -> VqaOutput:
        """Answer question [B, H]."""
        of_regions = self.attention_region(pictures.regions)
        logits = pictures.products(self.attention_question(question), of_regions, self.attention_score)
        logits, weights = pictures.weigh(logits, self.normalise)
        seen = [pictures.attend(weights).flatten(1)]  # [B, G D]
        counts = None
        if self.counter is not None:
            spread = pictures.groups.spread
            counts = self.counter(
                logits, spread(pairwise_iou(pictures.boxes)), spread(pictures.mask)
            )  # [B, G]
            seen.append(describe_counts(counts).flatten(1))  # [B, G 8]
        joint = self.joint_question(question).relu() * self.joint_regions(torch.cat(seen, 1)).relu()
        return VqaOutput(self.answers(self.dropout(joint)), logits, weights, counts)


class QuestionOnlyAnswerer(nn.Module):
    """The form's own joint layer without the regions' factor: answers from the question alone."""

    def __init__(self, config: VqaConfig, num_answers: int) -> None:
        super().__init__()
        hidden = config.hidden_dim
        self.joint: nn.Module
        match config.form:
            case "paper":
                self.joint = GatedTanh(hidden, hidden)
            case "binding":
                self.joint = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU())
            case _:
                self.joint = nn.Sequential(_weight_norm(hidden, hidden), nn.ReLU())
        self.dropout = nn.Dropout(config.dropout)
        self.answers = nn.Linear(hidden, num_answers)

    def forward(self, question: Tensor) -> Tensor:
        """Give the answers' logits [B, A] for question [B, H]."""
        logits: Tensor = self.answers(self.dropout(self.joint(question)))
        return logits
