"""Captions drawn at random from a captioner, all pictures of a batch and all samples of each at once.

Legend: B pictures, N samples of each, K region slots, T steps, V words.
"""

import torch
from torch import Tensor

from stage2_models.captioner import Captioner, DropoutMasks, EncodedRegions
from stage2_models.decoded import DecodedBatch
from stage2_models.decoding_config import DecodingConfig
from stage2_models.vocabulary import Vocabulary
from stage2_models.word_rules import WordRules

_STEPS_BETWEEN_CHECKS = 4


@torch.no_grad()
def sample(
    model: Captioner,
    encoded: EncodedRegions,
    vocabulary: Vocabulary,
    config: DecodingConfig,
    masks: DropoutMasks | None = None,
) -> DecodedBatch:
    """Draw `config.num_captions` captions of each picture.

    Random numbers come from torch's global generator of the device. The log-probability of a word is that of the
    (tempered) model, whatever `top_k` and `top_p` leave of the others. Captions keep the order they were drawn in.

    Args:
        model, encoded, vocabulary: as for `decode`. config: of method "sample".
        masks: dropout of max_length * N * B tokens, step by step, within a step sample by sample; for training.
    """
    pictures, samples = encoded.mask.shape[0], config.num_captions
    rows = samples * pictures
    rules = WordRules(config, vocabulary, encoded.mask.device)
    state = model.initial_state(rows, encoded.mean_gates)
    words = torch.full((rows,), vocabulary.bos_id, device=encoded.mask.device)
    history = words.new_empty(rows, 0) if rules.reads_history else None
    alive = torch.ones(rows, dtype=torch.bool, device=words.device)
    tokens, log_probs, attention = [], [], []
    for step in range(config.max_length):
        word_mask, output_mask = (masks or DropoutMasks()).rows(slice(step * rows, (step + 1) * rows))
        state, seen = model.step(encoded, model.gates_of_words(words, word_mask), state)
        hidden = state.language_hidden if output_mask is None else state.language_hidden * output_mask
        each = rules.log_probs(model.logits(hidden), step, words, history)
        words = torch.multinomial(_truncated(each, config).exp(), 1).squeeze(1)
        words = torch.where(alive, words, vocabulary.pad_id)
        tokens.append(words)
        log_probs.append(each.gather(1, words.unsqueeze(1)).squeeze(1).masked_fill(~alive, 0.0))
        attention.append(seen * alive.view(samples, pictures).t().unsqueeze(-1))
        alive = alive & (words != vocabulary.eos_id)
        if history is not None:
            history = torch.cat([history, words.unsqueeze(1)], 1)
        if step % _STEPS_BETWEEN_CHECKS == _STEPS_BETWEEN_CHECKS - 1 and not alive.any():
            break

    def by_picture(values: list[Tensor]) -> Tensor:
        return torch.stack(values, 1).view(samples, pictures, -1).transpose(0, 1)  # [B, N, T]

    drawn = by_picture(log_probs)
    return DecodedBatch(by_picture(tokens), drawn, torch.stack(attention, 2), drawn.sum(-1))


def _truncated(log_probs: Tensor, config: DecodingConfig) -> Tensor:
    """Forbid what `top_k` and `top_p` leave out of [N, V]; at least one word stays."""
    if not config.top_k and config.top_p == 1.0:
        return log_probs
    ordered, places = log_probs.sort(dim=1, descending=True)
    left_out = torch.zeros_like(ordered, dtype=torch.bool)
    if config.top_k:
        left_out[:, config.top_k :] = True
    if config.top_p < 1.0:
        probs = ordered.softmax(1)
        left_out |= probs.cumsum(1) - probs >= config.top_p  # what comes before a word holds enough already
    return log_probs.masked_fill(left_out.scatter(1, places, left_out), -torch.inf)
