"""The model that answers questions about a picture's regions.

Several forms, see vqa_answerers.py. "paper" is that of Anderson et al. 2018, sec. 3.3: gated tanh layers, additive
attention over the regions, sigmoid scores; "relu-product" and "relu-additive" are its widely used simplifications.
"binding" multiplies region and question in the attention, looks twice and counts without counting twice: it learns
in a minute which colour belongs to which object, where the paper's form needs hours (DESIGN §7). All read the
question with a GRU; all return the unnormalised attention of every region beside the weights.
Legend: B questions, T words, K region slots, D region feature, H hidden, G glimpses, A answers.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from stage2_models.loading.batch import RegionBatch
from stage2_models.picture_groups import PictureGroups
from stage2_models.question_gru import last_states
from stage2_models.regions import RegionInput
from stage2_models.vqa_answerers import (
    BindingAnswerer,
    PaperAnswerer,
    Pictures,
    QuestionOnlyAnswerer,
    ReluAnswerer,
    VqaOutput,
)
from stage2_models.vqa_config import VqaConfig

_ANSWERERS: dict[str, type[PaperAnswerer | ReluAnswerer | BindingAnswerer]] = {
    "paper": PaperAnswerer,
    "relu-product": ReluAnswerer,
    "relu-additive": ReluAnswerer,
    "binding": BindingAnswerer,
}


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
        self.question = QuestionEncoder(
            vocabulary_size, config.embed_dim, hidden, pad_id, slots=config.question_slots
        )
        self.region_input: RegionInput | None = None
        self.answerer: PaperAnswerer | ReluAnswerer | BindingAnswerer | QuestionOnlyAnswerer
        if config.question_only:
            self.answerer = QuestionOnlyAnswerer(config, num_answers)
            return
        self.region_input = RegionInput(
            feature_dim, normalise=config.normalise_features, use_geometry=config.use_geometry
        )
        self.answerer = _ANSWERERS[config.form](config, self.region_input.out_dim, num_answers)

    def forward(
        self,
        token_ids: Tensor,
        lengths: Tensor,
        regions: RegionBatch | None,
        pictures: Tensor | None = None,
    ) -> VqaOutput:
        """Answer a batch of questions.

        Args:
            token_ids: [B, T] int64, padded on the right.
            lengths: [B] int64, number of words of each question.
            regions: of U pictures; a question-only model ignores them.
            pictures: [B] int64, which of them each question is about; None where U is B and they are in order.
        """
        question = self.question(token_ids, lengths)
        if isinstance(self.answerer, QuestionOnlyAnswerer):
            return VqaOutput(self.answerer(question), None, None, None)
        assert regions is not None
        assert self.region_input is not None
        mask = regions.mask
        values = self.region_input(regions.features, regions.boxes, regions.sizes, mask)
        if pictures is None:
            groups = PictureGroups.one_each(len(mask), mask.device)
        else:
            groups = PictureGroups.of(pictures, len(mask))
        output: VqaOutput = self.answerer(question, Pictures(values, regions.boxes, mask, groups))
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

    Padding on the right changes nothing. With `slots` the GRU begins with as many zero vectors as a question
    has words fewer than that, which is the same as padding on the left; those steps are equal for all questions
    and so are done once a batch, for one. Without, a question without words is a zero vector.
    """

    def __init__(
        self, vocabulary_size: int, embed_dim: int, hidden_dim: int, pad_id: int, *, slots: int = 0
    ) -> None:
        super().__init__()
        self.slots = slots
        self.embedding = nn.Embedding(vocabulary_size, embed_dim, padding_idx=pad_id)
        self.gru = nn.GRU(embed_dim, hidden_dim, batch_first=True)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Encode token_ids [B, T] of the given lengths [B] as [B, H]."""
        initial = None if not self.slots else self._after_padding()[(self.slots - lengths).clamp(min=0)]
        return last_states(self.gru, self.embedding, token_ids, lengths, initial)

    def _after_padding(self) -> Tensor:
        """The states after 0, 1, .. `slots` zero vectors, [slots + 1, H]."""
        zeros = self.embedding.weight.new_zeros(1, self.slots, self.gru.input_size)
        states: Tensor = self.gru(zeros)[0][0]
        return torch.cat([states.new_zeros(1, self.gru.hidden_size), states])
