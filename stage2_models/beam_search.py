"""Beam search over captions, all pictures of a batch at once; a beam of one is greedy search.

Nothing here waits for the device except, every few steps, the question whether all captions are decided.
Legend: B pictures, W beams, N captions of each picture, K region slots, T steps, V words.
"""

import torch
from torch import Tensor

from stage2_models.captioner import Captioner, DecoderState, EncodedRegions
from stage2_models.decoded import DecodedBatch
from stage2_models.decoding_config import DecodingConfig, parse_length_penalty
from stage2_models.vocabulary import Vocabulary
from stage2_models.word_rules import WordRules

_STEPS_BETWEEN_CHECKS = 4


def beam_search(
    model: Captioner, encoded: EncodedRegions, vocabulary: Vocabulary, config: DecodingConfig
) -> DecodedBatch:
    """Find the best captions of each picture.

    A hypothesis that reaches eos takes its place among the W best of that step for the last time, and is kept. Those
    that reach `max_length` words are kept as they are. The kept ones are ranked by the sum of their log-probabilities
    after the length penalty, equally good ones by when they were finished. The search ends early only when no
    living hypothesis can change the result.

    Args:
        model: in evaluation mode. encoded: B pictures. vocabulary: the model's. config: of method "beam".
    """
    search = _Search(model, encoded, vocabulary, config)
    for step in range(config.max_length):
        search.advance()
        if step % _STEPS_BETWEEN_CHECKS == _STEPS_BETWEEN_CHECKS - 1 and search.is_decided():
            break
    return search.best(config.num_captions)


class _Search:
    """The beams of all pictures, step by step. Histories are kept as (token, parent beam) and read back at the end."""

    def __init__(
        self, model: Captioner, encoded: EncodedRegions, vocabulary: Vocabulary, config: DecodingConfig
    ) -> None:
        self.model, self.encoded, self.vocabulary, self.config = model, encoded, vocabulary, config
        self.beams = min(config.beam_size, len(vocabulary))
        self.pictures = encoded.mask.shape[0]
        device = encoded.mask.device
        self.rules = WordRules(config, vocabulary, device)
        # The gates of the whole vocabulary, [V, 4H], where more words will be read than it has.
        every = self.pictures * self.beams * config.max_length > len(vocabulary)
        self.word_gates = (
            model.gates_of_words(torch.arange(len(vocabulary), device=device)) if every else None
        )
        self.picture_rows = torch.arange(self.pictures, device=device).unsqueeze(1)  # [B, 1]
        # Sequences lie beam by beam, all pictures of a beam together: row = beam * B + picture.
        self.state: DecoderState = model.initial_state(self.beams * self.pictures, encoded.mean_gates)
        # Only the first beam is alive at the start, else all beams would carry the same caption.
        self.alive = torch.full((self.pictures, self.beams), -torch.inf, device=device)
        self.alive[:, 0] = 0.0
        self.last = torch.full((self.beams * self.pictures,), vocabulary.bos_id, device=device)
        self.history: Tensor | None = None
        if self.rules.reads_history:
            self.history = self.last.new_empty(len(self.last), 0)
        self.penalties = _penalties(config, device)
        # Per step [B, W]: the word, the beam it continues, its log-probability, and the score where it ends a caption.
        self.tokens: list[Tensor] = []
        self.parents: list[Tensor] = []
        self.log_probs: list[Tensor] = []
        self.finished: list[Tensor] = []
        self.attention: list[Tensor] = []  # per step [B, W, K], of the beam before selection

    def advance(self) -> None:
        """Read the last words, and continue the best W hypotheses of each picture by one word."""
        step = len(self.tokens)
        gates = (
            self.model.gates_of_words(self.last) if self.word_gates is None else self.word_gates[self.last]
        )
        self.state, seen = self.model.step(self.encoded, gates, self.state)
        logits = self.model.logits(self.state.language_hidden)
        log_probs = self.rules.log_probs(logits, step, self.last, self.history)
        log_probs = log_probs.view(self.beams, self.pictures, -1).transpose(0, 1)  # [B, W, V]
        totals = (self.alive.unsqueeze(-1) + log_probs).flatten(1)  # [B, W * V]
        sums, chosen = totals.topk(self.beams, dim=1)
        parents, tokens = chosen // log_probs.shape[-1], chosen % log_probs.shape[-1]
        ended = tokens == self.vocabulary.eos_id
        if step == self.config.max_length - 1:
            ended = torch.ones_like(ended)
        self.tokens.append(tokens)
        self.parents.append(parents)
        self.log_probs.append(log_probs[self.picture_rows, parents, tokens])
        self.attention.append(seen)
        self.finished.append((sums / self.penalties[step]).masked_fill(~ended, -torch.inf))
        self.alive = sums.masked_fill(ended, -torch.inf)
        self._follow(tokens, parents)

    def _follow(self, tokens: Tensor, parents: Tensor) -> None:
        """Let states and histories be those of the hypotheses that were continued."""
        rows = (parents * self.pictures + self.picture_rows).t().flatten()  # [W * B]
        self.last = tokens.t().flatten()
        self.state = self.state.select(rows)
        if self.history is not None:
            self.history = torch.cat([self.history.index_select(0, rows), self.last.unsqueeze(1)], 1)

    def is_decided(self) -> bool:
        """Whether no living hypothesis can come among the best: a sum of log-probabilities only falls."""
        finished = torch.stack(self.finished, 1).flatten(1)
        worst_kept = finished.topk(min(self.config.num_captions, finished.shape[1])).values[:, -1]
        # The largest divisor that a longer caption may get makes the best of its (negative) sum.
        best_possible = self.alive.amax(1) / self.penalties[len(self.tokens) - 1 :].amax()
        return bool((worst_kept >= best_possible).all())

    def best(self, num: int) -> DecodedBatch:
        """Read back the `num` best finished hypotheses of each picture."""
        finished = torch.stack(self.finished, 1).flatten(1)  # [B, T * W]
        scores, place = finished.sort(dim=1, descending=True, stable=True)
        scores, place = scores[:, :num], place[:, :num]  # [B, N]
        last_step, beam = place // self.beams, place % self.beams
        steps, slots = len(self.tokens), self.encoded.mask.shape[1]
        token_ids = torch.full((*place.shape, steps), self.vocabulary.pad_id, device=scores.device)
        log_probs = scores.new_zeros(*place.shape, steps)
        attention = scores.new_zeros(*place.shape, steps, slots)
        for step in range(steps - 1, -1, -1):
            part = (step <= last_step) & (
                scores > -torch.inf
            )  # [B, N], whether the caption is as long as that
            parent = self.parents[step].gather(1, beam)
            token_ids[:, :, step] = torch.where(
                part, self.tokens[step].gather(1, beam), self.vocabulary.pad_id
            )
            log_probs[:, :, step] = torch.where(part, self.log_probs[step].gather(1, beam), 0.0)
            attention[:, :, step] = self.attention[step][self.picture_rows, parent] * part.unsqueeze(-1)
            beam = torch.where(part, parent, beam)
        return DecodedBatch(token_ids, log_probs, attention, scores)


def _penalties(config: DecodingConfig, device: torch.device) -> Tensor:
    """What the sum of a caption is divided by, [max_length], by its length from 1 on, the end included."""
    lengths = torch.arange(1, config.max_length + 1, device=device, dtype=torch.float32)
    match parse_length_penalty(config.length_penalty):
        case ("wu", exponent):
            return ((5 + lengths) / 6) ** exponent
        case ("avg", _):
            return lengths
        case _:
            return torch.ones_like(lengths)
