"""Scheduled sampling: in training the captioner reads, now and then, its own word in place of the true one.

Its own words are drawn in a first reading, without gradients; the second, which learns, reads the mixture at
full speed. Both have the same dropout, so together they equal one reading that samples as it goes.
Source: Bengio et al. 2015, arXiv 1506.03099.
"""

import torch
from torch import Tensor

from stage2_models.caption_tokens import CaptionTokens
from stage2_models.captioner import Captioner, DecoderState, DropoutMasks, EncodedRegions


@torch.no_grad()
def mix_in_own_words(
    model: Captioner, encoded: EncodedRegions, tokens: CaptionTokens, masks: DropoutMasks, probability: float
) -> Tensor:
    """Replace words that are read by the model's own, each with this probability; begin stays.

    An own word is drawn from what the model predicts at that place, given the mixture before it. Random numbers
    come from torch's global generator of the device.

    Args:
        encoded: B pictures. tokens: their captions. masks: dropout of the S * B tokens.

    Returns:
        [S, B], in place of `tokens.inputs`.
    """
    sizes = [count * tokens.inputs.shape[1] for count in tokens.captions_per_step]
    given = tokens.inputs.flatten()
    own = torch.rand(len(given), device=given.device) < probability
    own[: sizes[0]] = False
    state = model.initial_state(sizes[0], encoded.mean_gates)
    mixed, drawn, start = [], given[: sizes[0]], 0
    for size in sizes:
        part = slice(start, start + size)
        words = torch.where(own[part], drawn[:size], given[part])
        mixed.append(words)
        word_mask, output_mask = masks.rows(part)
        alive = DecoderState(*(values[:size] for values in state))
        state, _ = model.step(encoded, model.gates_of_words(words, word_mask), alive)
        hidden = state.language_hidden if output_mask is None else state.language_hidden * output_mask
        drawn = torch.multinomial(model.logits(hidden).float().softmax(-1), 1).squeeze(1)
        start += size
    return torch.cat(mixed).view_as(tokens.inputs)
