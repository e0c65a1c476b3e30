"""Captions from a trained captioner: greedy, beam search, sampling; the n best; all pictures of a batch at once.

Every word comes with its log-probability and the attention that emitted it. How a search goes is beam_search.py's
and sampling.py's; which words may follow, word_rules.py's.
"""

import torch

from stage2_models.beam_search import beam_search
from stage2_models.captioner import Captioner, EncodedRegions
from stage2_models.decoded import DecodedBatch, GeneratedCaption
from stage2_models.decoding_config import DecodingConfig
from stage2_models.sampling import sample
from stage2_models.vocabulary import Vocabulary

__all__ = ["DecodedBatch", "DecodingConfig", "GeneratedCaption", "decode"]


@torch.no_grad()
def decode(
    model: Captioner, encoded: EncodedRegions, vocabulary: Vocabulary, config: DecodingConfig
) -> DecodedBatch:
    """Write captions for each picture.

    Args:
        model: in evaluation mode (dropout would act otherwise). encoded: B pictures, from `model.encode`.
        vocabulary: the model's. config: how; sampling draws from torch's global generator.
    """
    if config.method == "sample":
        return sample(model, encoded, vocabulary, config)
    return beam_search(model, encoded, vocabulary, config)
