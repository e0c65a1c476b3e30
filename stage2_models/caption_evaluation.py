"""Writes a caption for every picture of a split and judges it: scores against the references, loss of a token."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from stage2_models.caption_data import EncodedCaptions, Words, read_in_order
from stage2_models.caption_metrics import CaptionScores, score_captions
from stage2_models.captioner import Captioner
from stage2_models.decoding import DecodingConfig, GeneratedCaption, decode
from stage2_models.vocabulary import Vocabulary
from store_schema.reader import RegionStore


@dataclass(frozen=True)
class CaptionEvaluation:
    """captions: one a picture, by image_id. references: what they were judged by. token_loss: nats a token, eos
    included, over all references."""

    captions: dict[str, GeneratedCaption]
    references: dict[str, tuple[Words, ...]]
    scores: CaptionScores
    token_loss: float

    def metrics(self) -> dict[str, float]:
        """Scores of the whole and the loss, by name."""
        return {**self.scores.overall, "token_loss": self.token_loss}


@torch.no_grad()
def evaluate_captions(
    model: Captioner,
    encoded: EncodedCaptions,
    vocabulary: Vocabulary,
    store: RegionStore,
    *,
    device: torch.device,
    batch_size: int,
    decoding: DecodingConfig,
) -> CaptionEvaluation:
    """Caption and judge the pictures of `encoded`; leaves the model in training mode where it was."""
    was_training = model.training
    model.eval()
    captions: dict[str, GeneratedCaption] = {}
    loss = torch.zeros((), device=device)
    num_tokens = 0
    most = int((encoded.first[1:] - encoded.first[:-1]).max())
    for indices, host_regions in read_in_order(store, encoded.rows, batch_size):
        regions = host_regions.to(device)
        pictures = model.encode(regions)
        decoded = decode(model, pictures, vocabulary, decoding)
        image_ids = (encoded.captions.image_ids[index] for index in indices)
        captions.update(zip(image_ids, decoded.captions(vocabulary), strict=True))
        tokens = encoded.tokens(indices, vocabulary, captions_per_image=most).to(device)
        outputs = model.outputs(pictures, tokens.inputs, tokens.captions_per_step)[tokens.positions]
        loss += F.cross_entropy(model.logits(outputs), tokens.targets, reduction="sum")
        num_tokens += len(tokens.targets)
    model.train(was_training)
    written = {image_id: caption.words for image_id, caption in captions.items()}
    references = encoded.captions.references()
    scores = score_captions(written, references)
    return CaptionEvaluation(captions, references, scores, loss.item() / num_tokens)
