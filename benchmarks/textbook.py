"""The two models as a textbook writes them: what `bench_models` compares with, on the same weights.

Captioning: an `LSTMCell` a step, the features of a picture repeated for each of its captions, every step's attention
and words computed in the step. VQA: `nn.GRU` over questions padded to 14 words, dense targets. Nothing here is used
by the project itself. Legend: B pictures, N captions, T steps, K regions, D feature, H hidden, V words, A answers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from stage2_models.captioner import Captioner
from stage2_models.vqa import VqaModel


class TextbookCaptioner(nn.Module):
    """The paper's captioner, one caption a row."""

    def __init__(self, feature_dim: int, num_words: int, hidden: int, embed: int, attention: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.words = nn.Embedding(num_words, embed)
        self.attention_lstm = nn.LSTMCell(hidden + feature_dim + embed, hidden)
        self.language_lstm = nn.LSTMCell(feature_dim + hidden, hidden)
        self.region = nn.Linear(feature_dim, attention)
        self.query = nn.Linear(hidden, attention)
        self.score = nn.Linear(attention, 1)
        self.classifier = nn.Linear(hidden, num_words)

    def start(self, features: Tensor) -> tuple[Tensor, ...]:
        """Four zero states [N, H]."""
        return tuple(features.new_zeros(len(features), self.hidden) for _ in range(4))

    def step(
        self, words: Tensor, features: Tensor, projected: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Log-probabilities [N, V] of the next word after words [N], from features [N, K, D]."""
        hidden, cell, language_hidden, language_cell = state
        inputs = torch.cat([language_hidden, features.mean(1), self.words(words)], 1)
        hidden, cell = self.attention_lstm(inputs, (hidden, cell))
        scores = self.score(torch.tanh(projected + self.query(hidden).unsqueeze(1))).squeeze(2)
        attended = torch.bmm(scores.softmax(1).unsqueeze(1), features).squeeze(1)
        inputs = torch.cat([attended, hidden], 1)
        language_hidden, language_cell = self.language_lstm(inputs, (language_hidden, language_cell))
        log_probs = F.log_softmax(self.classifier(language_hidden), 1)
        return log_probs, (hidden, cell, language_hidden, language_cell)

    def loss(self, features: Tensor, captions: Tensor, mask: Tensor) -> Tensor:
        """Cross entropy of a token.

        Args:
            features: [B, K, D]. captions: [B * Q, T + 1], bos first, those of a picture one after the other.
            mask: [B * Q, T], True for words and one eos.
        """
        features = features.repeat_interleave(len(captions) // len(features), 0)
        projected, state = self.region(features), self.start(features)
        losses = []
        for place in range(mask.shape[1]):
            if not mask[:, place].any():
                break
            log_probs, state = self.step(captions[:, place], features, projected, state)
            picked = log_probs.gather(1, captions[:, place + 1 : place + 2]).squeeze(1)
            losses.append(-picked * mask[:, place])
        return torch.stack(losses).sum() / mask.sum()

    @torch.no_grad()
    def greedy(self, features: Tensor, bos_id: int, eos_id: int, max_length: int) -> Tensor:
        """The most likely next word each time, [B, at most max_length]; eos after the end."""
        projected, state = self.region(features), self.start(features)
        words = torch.full((len(features),), bos_id)
        finished = torch.zeros(len(features), dtype=torch.bool)
        chosen = []
        for _ in range(max_length):
            log_probs, state = self.step(words, features, projected, state)
            words = log_probs.argmax(1).masked_fill(finished, eos_id)
            chosen.append(words)
            finished |= words == eos_id
            if finished.all():
                break
        return torch.stack(chosen, 1)

    @torch.no_grad()
    def beam(
        self, features: Tensor, beam_size: int, bos_id: int, eos_id: int, max_length: int
    ) -> list[list[int]]:
        """The best of `beam_size` hypotheses of each picture by summed log-probability, without eos.

        All pictures' hypotheses go through the network together, their features repeated; pictures and hypotheses
        are gone over in loops.
        """
        num_pictures = len(features)
        features = features.repeat_interleave(beam_size, 0)
        projected, state = self.region(features), self.start(features)
        words = torch.full((len(features),), bos_id)
        live: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in range(num_pictures)]
        finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(num_pictures)]
        for _ in range(max_length):
            log_probs, state = self.step(words, features, projected, state)
            rows, next_words = [], []
            for picture in range(num_pictures):
                candidates = []
                for place, (total, text) in enumerate(live[picture]):
                    row = picture * beam_size + place
                    values, ids = log_probs[row].topk(beam_size)
                    for value, word in zip(values.tolist(), ids.tolist(), strict=True):
                        candidates.append((total + value, row, [*text, word]))
                candidates.sort(key=lambda candidate: -candidate[0])
                kept = []
                for total, row, text in candidates[:beam_size]:
                    if text[-1] == eos_id:
                        finished[picture].append((total, text[:-1]))
                    else:
                        kept.append((total, row, text))
                live[picture] = [(total, text) for total, _, text in kept]
                own = [row for _, row, _ in kept] + [picture * beam_size] * (beam_size - len(kept))
                rows += own
                next_words += [text[-1] for *_, text in kept] + [eos_id] * (beam_size - len(kept))
            index = torch.tensor(rows)
            state = tuple(value[index] for value in state)
            words = torch.tensor(next_words)
        return [
            max([*finished[picture], *live[picture]], key=lambda hypothesis: hypothesis[0])[1]
            for picture in range(num_pictures)
        ]


class TextbookVqa(nn.Module):
    """The ReLU weight-norm model, one question a row, each with its own copy of the regions."""

    def __init__(self, feature_dim: int, num_words: int, hidden: int, embed: int, num_answers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(num_words, embed, padding_idx=num_words - 1)
        self.gru = nn.GRU(embed, hidden, batch_first=True)

        def layer(in_dim: int, out_dim: int) -> nn.Module:
            normed: nn.Module = weight_norm(nn.Linear(in_dim, out_dim), dim=None)  # type: ignore[arg-type]  # stub
            return normed

        self.attention_region, self.attention_question = layer(feature_dim, hidden), layer(hidden, hidden)
        self.attention_score = layer(hidden, 1)
        self.joint_question, self.joint_regions = layer(hidden, hidden), layer(feature_dim, hidden)
        self.joint, self.answers = layer(hidden, 2 * hidden), layer(2 * hidden, num_answers)

    def forward(self, features: Tensor, questions: Tensor) -> Tensor:
        """Answer logits [B, A] of questions [B, 14], padded on the left, from features [B, K, D]."""
        states, _ = self.gru(self.words(questions))
        question = states[:, -1]
        product = self.attention_region(features).relu() * self.attention_question(question).relu().unsqueeze(
            1
        )
        weights = self.attention_score(product).softmax(1)  # [B, K, 1]
        attended = (weights * features).sum(1)
        joint = self.joint_question(question).relu() * self.joint_regions(attended).relu()
        logits: Tensor = self.answers(self.joint(joint).relu())
        return logits

    def loss(self, features: Tensor, questions: Tensor, targets: Tensor) -> Tensor:
        """Binary cross entropy summed over answers [B, A], averaged over questions."""
        logits = self(features, questions)
        return F.binary_cross_entropy_with_logits(logits, targets) * targets.shape[1]


@torch.no_grad()
def copy_captioner(ours: Captioner, textbook: TextbookCaptioner) -> None:
    """Give the textbook captioner our weights. Our gates are input, forget, output, cell; `LSTMCell` has the last
    two the other way round."""

    def gates(weight: Tensor) -> Tensor:
        first, second, third, fourth = weight.chunk(4)
        return torch.cat([first, second, fourth, third])

    hidden = ours.hidden_dim
    to_own, to_language = gates(ours.attention_recurrence.weight).split(hidden, 1)
    lstm = textbook.attention_lstm
    lstm.weight_hh.copy_(to_own)
    lstm.weight_ih.copy_(
        torch.cat([to_language, gates(ours.mean_gates.weight), gates(ours.word_gates.weight)], 1)
    )
    lstm.bias_ih.copy_(gates(ours.word_gates.bias))
    lstm.bias_hh.zero_()
    from_attention, to_own = gates(ours.language_recurrence.weight).split(hidden, 1)
    lstm = textbook.language_lstm
    lstm.weight_hh.copy_(to_own)
    lstm.weight_ih.copy_(torch.cat([gates(ours.region_gates.weight), from_attention], 1))
    lstm.bias_ih.copy_(gates(ours.language_recurrence.bias))
    lstm.bias_hh.zero_()
    textbook.words.load_state_dict(ours.word_embedding.state_dict())
    textbook.classifier.load_state_dict(ours.classifier.state_dict())
    for name in ("region", "query", "score"):
        getattr(textbook, name).load_state_dict(getattr(ours.attention, name).state_dict())


def copy_vqa(ours: VqaModel, textbook: TextbookVqa) -> None:
    """Give the textbook model our weights."""
    textbook.words.load_state_dict(ours.question.embedding.state_dict())
    textbook.gru.load_state_dict(ours.question.gru.state_dict())
    for name, module in textbook.named_children():
        if name not in ("words", "gru"):
            module.load_state_dict(getattr(ours.answerer, name).state_dict())
