"""Beam search over captions, all pictures of a batch at once; a beam of one is greedy search.

Hypotheses that can change nothing any more are left out of the steps that follow, and so are pictures without any
other. Nothing here waits for the device except, every few steps, the question which these are.
Legend: B pictures, b those not decided yet, W beams (w of them read in a step: 1 in the first, later as many as the
picture with most has hopes), N captions of each picture, K region slots, T steps, V words.
"""

import torch
from torch import Tensor

from stage2_models.captioner import Captioner, DecoderState, EncodedRegions
from stage2_models.decoded import DecodedBatch
from stage2_models.decoding_config import DecodingConfig, parse_length_penalty
from stage2_models.vocabulary import Vocabulary
from stage2_models.word_rules import WordRules

_STEPS_BETWEEN_CHECKS = 4
"""On a device that works beside this process; on the CPU every step is followed by a look."""
_SHARE_WORTH_LEAVING_OUT = 1 / 8
"""Leaving pictures out copies what the others need, so it waits until so many of them are decided."""


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
    interval = 1 if encoded.mask.device.type == "cpu" else _STEPS_BETWEEN_CHECKS
    for step in range(1, config.max_length + 1):
        search.advance()
        if step % interval == 0 and search.leave_out_hopeless():
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
        self.left = torch.arange(self.pictures, device=device)  # [b]
        # Sequences lie beam by beam, all pictures of a beam together: row = beam * b + picture.
        self.state: DecoderState = model.initial_state(self.pictures, encoded.mean_gates)
        self.continued = self.left  # [w * b], which row of the state each continues
        self.shares = device.type == "cpu"
        self.alive = torch.zeros(self.pictures, 1, device=device)  # [b, w], summed log-probabilities
        # [b, w], which of the W of the step before each is
        self.places = self.left.new_zeros(self.pictures, 1)
        self.last = torch.full((self.pictures,), vocabulary.bos_id, device=device)  # [w * b]
        self.history = self.last.new_empty(self.pictures, 0) if self.rules.reads_history else None
        self.penalties = _penalties(config, device)
        # Per step [B, W], also for pictures left out: the word, the beam it continues, its log-probability, and the
        # score where it ends a caption.
        self.tokens: list[Tensor] = []
        self.parents: list[Tensor] = []
        self.log_probs: list[Tensor] = []
        self.finished: list[Tensor] = []
        self.attention: list[Tensor] = []  # per step [B, W, K], by which the word was chosen

    def advance(self) -> None:
        """Read the last words, and continue the best W hypotheses of each picture by one word."""
        step = len(self.tokens)
        state, origins = self._distinct_states()
        self.state, seen = self.model.step(self.encoded, self._gates_of_last_words(), state, origins)
        logits = self.model.logits(self.state.language_hidden)
        log_probs = self.rules.log_probs(logits, step, self.last, self.history)
        # The best W of a picture are among the best W of each of its hypotheses.
        log_probs, words = log_probs.topk(self.beams, dim=1)  # [w * b, W]
        totals = self.alive.unsqueeze(-1) + self._by_picture(log_probs)  # [b, w, W]
        sums, chosen = totals.flatten(1).topk(self.beams, dim=1)  # [b, W]
        parents = chosen // self.beams
        tokens = self._by_picture(words).flatten(1).gather(1, chosen)
        ended = tokens == self.vocabulary.eos_id
        if step == self.config.max_length - 1:
            ended = torch.ones_like(ended)
        self.tokens.append(self._of_all(tokens, self.vocabulary.pad_id))
        self.parents.append(self._of_all(self.places.gather(1, parents), 0))
        picture_rows = torch.arange(len(self.left), device=tokens.device).unsqueeze(1)  # [b, 1]
        each = self._by_picture(log_probs).flatten(1).gather(1, chosen)
        self.log_probs.append(self._of_all(each, 0.0))
        self.attention.append(self._of_all(seen[picture_rows, parents], 0.0))
        finished = (sums / self.penalties[step]).masked_fill(~ended, -torch.inf)
        self.finished.append(self._of_all(finished, -torch.inf))
        self.alive = sums.masked_fill(ended, -torch.inf)
        self.places = torch.arange(self.beams, device=tokens.device).expand_as(tokens)
        self.last = tokens.t().flatten()
        self.continued = (parents * len(self.left) + picture_rows).t().flatten()  # [W * b]
        if self.history is not None:
            self.history = self.history.index_select(0, self.continued)
            self.history = torch.cat([self.history, self.last.unsqueeze(1)], 1)

    def leave_out_hopeless(self) -> bool:
        """Go on without hypotheses that can no longer come among the best captions; True if none is left.

        A sum of log-probabilities only falls, so the best that a living hypothesis can come to is known. Nor do the
        hopeless keep others out of the beam: whatever may still win lies above all that continues them.
        """
        finished = torch.stack(self.finished, 1).flatten(1)[self.left]  # [b, T * W]
        worst_kept = finished.topk(min(self.config.num_captions, finished.shape[1])).values[:, -1:]
        # The largest divisor that a longer caption may get makes the best of its (negative) sum.
        best_possible = self.alive / self.penalties[len(self.tokens) - 1 :].amax()
        hopes = (worst_kept < best_possible).sum(1)  # [b]
        kept = hopes.nonzero().squeeze(1)
        if not len(kept):
            return True
        if len(kept) > (1 - _SHARE_WORTH_LEAVING_OUT) * len(self.left):
            kept = torch.arange(len(self.left), device=kept.device)
        most = int(hopes.max())
        if len(kept) < len(self.left) or most < self.alive.shape[1]:
            alive, beams = self.alive[kept].topk(most)  # [b, w], the hopeful ones first
            self.alive, self.places = alive, self.places[kept].gather(1, beams)
            rows = (beams * len(self.left) + kept.unsqueeze(1)).t().flatten()
            self.last, self.continued = self.last.index_select(0, rows), self.continued.index_select(0, rows)
            if self.history is not None:
                self.history = self.history.index_select(0, rows)
        if len(kept) < len(self.left):
            self.encoded = EncodedRegions(*(value.index_select(0, kept) for value in self.encoded))
            self.left = self.left[kept]
        return False

    def _by_picture(self, values: Tensor) -> Tensor:
        """Sequences' values [w * b, W] as [b, w, W]."""
        return values.view(-1, len(self.left), values.shape[1]).transpose(0, 1)

    def _distinct_states(self) -> tuple[DecoderState, Tensor | None]:
        """The states that are continued, each once, and which of them each sequence continues.

        A beam's hypotheses often continue the same one: about 2.8 different ones of 5, on made-up captions.
        How many they are has to be known, so only where nothing waits for that.
        """
        if self.shares:
            distinct, origins = self.continued.unique(return_inverse=True)  # type: ignore[no-untyped-call]
            if len(distinct) < len(origins):
                return self.state.select(distinct), origins
        return self.state.select(self.continued), None

    def _gates_of_last_words(self) -> Tensor:
        """The gates [w * b, 4H] of the last words; on the CPU each word's once."""
        if self.word_gates is not None:
            return self.word_gates[self.last]
        if not self.shares:
            return self.model.gates_of_words(self.last)
        distinct, places = self.last.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        return self.model.gates_of_words(distinct).index_select(0, places)

    def _of_all(self, values: Tensor, filling: float) -> Tensor:
        """Values [b, ...] of the pictures not decided yet as [B, ...]."""
        if len(self.left) == self.pictures:
            return values
        everything = values.new_full((self.pictures, *values.shape[1:]), filling)
        return everything.index_copy(0, self.left, values)

    def best(self, num: int) -> DecodedBatch:
        """Read back the `num` best finished hypotheses of each picture."""
        finished = torch.stack(self.finished, 1).flatten(1)  # [B, T * W]
        scores, place = finished.sort(dim=1, descending=True, stable=True)
        scores, place = scores[:, :num], place[:, :num]  # [B, N]
        last_step, beam = place // self.beams, place % self.beams
        steps, slots = len(self.tokens), self.attention[0].shape[2]
        picture_rows = torch.arange(self.pictures, device=scores.device).unsqueeze(1)  # [B, 1]
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
            attention[:, :, step] = self.attention[step][picture_rows, beam] * part.unsqueeze(-1)
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
