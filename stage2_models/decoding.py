"""Captions from a trained captioner: greedy and beam search, batched over pictures.

Every word comes with its log-probability and the attention that emitted it. Unknown words, padding and begin
are never written; the probabilities are the model's own, not renormalised after that. Nothing here waits for
the device except, every few steps, the question whether all captions are finished.

Legend: B pictures, W beams, K region slots, T steps, V words.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage2_models.captioner import Captioner, DecoderState, EncodedRegions
from stage2_models.vocabulary import Vocabulary
from store_schema.errors import ConfigError

_STEPS_BETWEEN_CHECKS = 4


@dataclass(frozen=True)
class GeneratedCaption:
    """One caption with what led to it.

    words: the words without eos. log_probs: [words] float32, of each word. log_prob: sum over the words and,
    unless the caption was cut at the longest length, its end. attention: [words, K] float32, the weights over the
    picture's region slots at the step that emits the word.
    """

    words: tuple[str, ...]
    log_probs: NDArray[np.float32]
    log_prob: float
    attention: NDArray[np.float32]

    @property
    def text(self) -> str:
        """The words with spaces between."""
        return " ".join(self.words)


@dataclass(frozen=True)
class DecodedBatch:
    """Best captions of B pictures, as tensors on the model's device.

    token_ids: [B, T] int64, filled with pad after eos. log_probs: [B, T], 0 after eos. attention: [B, T, K].
    scores: [B], the sum of the log-probabilities.
    """

    token_ids: Tensor
    log_probs: Tensor
    attention: Tensor
    scores: Tensor

    def captions(self, vocabulary: Vocabulary) -> list[GeneratedCaption]:
        """Take the captions to the host, in the order of the pictures."""
        token_ids = self.token_ids.tolist()
        log_probs, attention = self.log_probs.float().cpu().numpy(), self.attention.float().cpu().numpy()
        captions = []
        for row, score in enumerate(self.scores.tolist()):
            words = tuple(vocabulary.decode(token_ids[row]))
            captions.append(
                GeneratedCaption(words, log_probs[row, : len(words)], score, attention[row, : len(words)])
            )
        return captions


@torch.no_grad()
def decode(
    model: Captioner, encoded: EncodedRegions, vocabulary: Vocabulary, *, beam_size: int, max_length: int
) -> DecodedBatch:
    """Find a caption for each picture by beam search; a beam of one is greedy search.

    A hypothesis that reaches eos leaves its beam and is kept; the best kept one (by the sum of log-probabilities)
    is the result. Hypotheses that reach `max_length` words are kept as they are. Equally good ones: the one that
    was finished first.

    Args:
        model: in evaluation mode (dropout would act otherwise).
        encoded: B pictures, from `model.encode`.
        vocabulary: the model's.
        beam_size: W, at least 1.
        max_length: the most words of a caption, at least 1.
    """
    if beam_size < 1 or max_length < 1:
        raise ConfigError(
            f"decoding: beam_size and max_length must be at least 1, they are {beam_size}, {max_length}"
        )
    search = _Search(model, encoded, vocabulary, min(beam_size, len(vocabulary)), max_length)
    for step in range(max_length):
        search.advance()
        if step % _STEPS_BETWEEN_CHECKS == _STEPS_BETWEEN_CHECKS - 1 and search.is_decided():
            break
    return search.best(cut=len(search.tokens) == max_length)


class _Search:
    """The beams of all pictures, step by step. Histories are kept as (token, parent beam) and read back at the end."""

    def __init__(
        self, model: Captioner, encoded: EncodedRegions, vocabulary: Vocabulary, beams: int, max_length: int
    ) -> None:
        self.model, self.encoded, self.vocabulary, self.beams = model, encoded, vocabulary, beams
        self.pictures = encoded.mask.shape[0]
        device = encoded.mask.device
        forbidden = [
            i for i in (vocabulary.pad_id, vocabulary.bos_id, vocabulary.unk_id) if i != vocabulary.eos_id
        ]
        self.forbidden = torch.tensor(sorted(set(forbidden)), device=device)
        # The gates of the whole vocabulary, [V, 4H], where more words will be read than it has.
        every = self.pictures * beams * max_length > len(vocabulary)
        self.word_gates = (
            model.gates_of_words(torch.arange(len(vocabulary), device=device)) if every else None
        )
        self.picture_rows = torch.arange(self.pictures, device=device).unsqueeze(1)  # [B, 1]
        # Sequences lie beam by beam, all pictures of a beam together: row = beam * B + picture.
        self.state: DecoderState = model.initial_state(beams * self.pictures, encoded.mean_gates)
        # Only the first beam is alive at the start, else all beams would carry the same caption.
        self.alive = encoded.mean_gates.new_full((self.pictures, beams), -torch.inf)
        self.alive[:, 0] = 0.0
        self.last = torch.full((self.pictures, beams), vocabulary.bos_id, device=device)
        self.tokens: list[
            Tensor
        ] = []  # per step [B, W]: the word, the beam it continues, its log-probability
        self.parents: list[Tensor] = []
        self.log_probs: list[Tensor] = []
        self.attention: list[Tensor] = []  # per step [B, W, K], of the beam before selection
        self.finished: list[
            Tensor
        ] = []  # per step [B, W]: the score where this word ends a caption, else -inf

    def advance(self) -> None:
        """Read the last words, and continue the best W hypotheses of each picture by one word."""
        words = self.last.t().flatten()  # [W * B]
        gates = self.model.gates_of_words(words) if self.word_gates is None else self.word_gates[words]
        self.state, seen = self.model.step(self.encoded, gates, self.state)
        log_probs = self.model.logits(self.state.language_hidden).float().log_softmax(-1)
        log_probs = log_probs.index_fill(1, self.forbidden, -torch.inf)
        log_probs = log_probs.view(self.beams, self.pictures, -1).transpose(0, 1)  # [B, W, V]
        totals = (self.alive.unsqueeze(-1) + log_probs).flatten(1)  # [B, W * V]
        scores, chosen = totals.topk(self.beams, dim=1)
        parents, tokens = chosen // log_probs.shape[-1], chosen % log_probs.shape[-1]
        ended = tokens == self.vocabulary.eos_id
        self.tokens.append(tokens)
        self.parents.append(parents)
        self.log_probs.append(log_probs.flatten(1).gather(1, chosen))
        self.attention.append(seen)
        self.finished.append(scores.masked_fill(~ended, -torch.inf))
        self.alive = scores.masked_fill(ended, -torch.inf)
        self.last = tokens
        self.state = self.state.select((parents * self.pictures + self.picture_rows).t().flatten())

    def is_decided(self) -> bool:
        """Whether no living hypothesis can still win: a sum of log-probabilities only falls."""
        best = torch.stack(self.finished).amax((0, 2))
        return bool((best >= self.alive.amax(1)).all())

    def best(self, *, cut: bool) -> DecodedBatch:
        """Read back the best finished hypothesis of each picture; `cut` makes the living ones finished too."""
        if cut:
            self.finished[-1] = torch.maximum(self.finished[-1], self.alive)
        finished = torch.stack(self.finished, 1)  # [B, T, W]
        scores, place = finished.flatten(1).max(1)
        last_step, beam = place // self.beams, place % self.beams
        steps = len(self.tokens)
        token_ids = torch.full((self.pictures, steps), self.vocabulary.pad_id, device=scores.device)
        log_probs = scores.new_zeros(self.pictures, steps)
        attention = scores.new_zeros(self.pictures, steps, self.encoded.mask.shape[1])
        rows = torch.arange(self.pictures, device=scores.device)
        for step in range(steps - 1, -1, -1):
            part = step <= last_step  # [B], whether the caption is as long as that
            parent = self.parents[step][rows, beam]
            token_ids[:, step] = torch.where(part, self.tokens[step][rows, beam], token_ids[:, step])
            log_probs[:, step] = torch.where(part, self.log_probs[step][rows, beam], 0.0)
            attention[:, step] = self.attention[step][rows, parent] * part.unsqueeze(1)
            beam = torch.where(part, parent, beam)
        return DecodedBatch(token_ids, log_probs, attention, scores)
