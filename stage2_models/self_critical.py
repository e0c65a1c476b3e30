"""Self-critical training: the captioner's own samples, each worth what its CIDEr-D is above a baseline.

A step samples without gradients, sends the samples off to be scored, writes the greedy captions, reads the
samples with gradients at full speed, and only then needs the scores. Both readings have the same dropout, so
together they equal one that samples as it goes.
Sources: Rennie et al. 2017, arXiv 1612.00563; baseline by the other samples: Luo 2020, arXiv 2003.09971.
Legend: B pictures, Q samples of each, T steps, S the sum over the steps of the samples read, M tokens.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage2_models.caption_data import CaptionBatch, EncodedCaptions
from stage2_models.caption_losses import CaptionLossConfig, advantages, self_critical_loss
from stage2_models.caption_tokens import CaptionTokens
from stage2_models.captioner import Captioner
from stage2_models.cider import CiderD
from stage2_models.decoding import DecodingConfig, decode
from stage2_models.sampling import sample
from stage2_models.score_workers import ScoreWorkers
from stage2_models.vocabulary import Vocabulary


class SelfCritical:
    """The second phase of a captioning task.

    Args:
        train: the training captions: their pictures' references, and the document frequencies.
        max_length: most words of a sample.
    """

    def __init__(
        self,
        model: Captioner,
        vocabulary: Vocabulary,
        train: EncodedCaptions,
        losses: CaptionLossConfig,
        *,
        max_length: int,
    ) -> None:
        self.model, self.vocabulary, self.losses = model, vocabulary, losses
        scorer = CiderD(train.captions.words, with_end=losses.reward_end)
        self._word_ids = np.array([scorer.word_ids.get(word, 0) for word in vocabulary.words], np.int32)
        self._end = scorer.encode([])
        never = {vocabulary.pad_id, vocabulary.bos_id} - {vocabulary.eos_id}
        self._never = torch.tensor(sorted(never), dtype=torch.long)
        self._workers = ScoreWorkers(scorer, losses.score_workers)
        self._sampling = DecodingConfig(
            method="sample", num_captions=losses.samples_per_image, max_length=max_length, allow_unk=True
        )
        self._greedy = DecodingConfig(beam_size=1, max_length=max_length, allow_unk=True)

    def loss(self, batch: CaptionBatch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Sum over the samples' tokens, their number, and the mean CIDEr-D of samples and greedy captions."""
        model, needs_greedy = self.model, self.losses.baseline == "greedy"
        encoded = model.encode(batch.regions)
        num_rows = self.losses.samples_per_image * len(encoded.mask)
        masks = model.draw_masks(self._sampling.max_length * num_rows, encoded)
        drawn = sample(model, encoded, self.vocabulary, self._sampling, masks)
        samples = drawn.token_ids.cpu().numpy()  # [B, Q, T]; here the host waits for the device
        lengths, ends = self._lengths(samples)
        self._submit(batch.indices, samples, lengths, ends)
        if needs_greedy:
            self._submit_greedy(batch)
        order = np.argsort(-(lengths + ends), axis=1, kind="stable")  # longest first, as they are read
        samples, lengths, ends = (
            np.take_along_axis(values, order.reshape(*order.shape, *[1] * (values.ndim - 2)), 1)
            for values in (samples, lengths, ends)
        )
        tokens = CaptionTokens.from_arrays(samples, lengths, self.vocabulary, ends).to(encoded.mask.device)
        steps, slots = _places(tokens.captions_per_step, len(order))
        slot, picture = slots // len(order), slots % len(order)
        drawn_rows = steps * num_rows + order[picture, slot] * len(order) + picture
        read = masks.rows(torch.from_numpy(drawn_rows).to(encoded.mask.device))
        outputs = model.outputs(encoded, tokens.inputs, tokens.captions_per_step, read)[tokens.positions]
        # Of the words that can be drawn: with the others' share left in, every caption below the baseline would
        # teach the model to expect these others, whatever it says, and nothing would ever teach it back.
        drawable = model.logits(outputs).index_fill(1, self._never.to(outputs.device), -torch.inf)
        log_probs = drawable.log_softmax(-1).gather(1, tokens.targets.unsqueeze(1)).squeeze(1)
        scores, greedy_scores = self._collect(len(order), needs_greedy=needs_greedy)
        advantage = advantages(scores, greedy_scores, self.losses.baseline)
        sorted_advantage = advantage.gather(1, torch.from_numpy(order)).t().flatten()  # [Q * B]
        of_tokens = sorted_advantage[torch.from_numpy(slots)].to(log_probs)[tokens.positions]
        parts = {"sample_cider_d": scores.mean()}
        if greedy_scores is not None:
            parts["greedy_cider_d"] = greedy_scores.mean()
        return self_critical_loss(log_probs, of_tokens), len(log_probs), parts

    def _lengths(self, token_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The number of words of each caption [B, Q, T], and whether it has an end or was cut."""
        is_end = token_ids == self.vocabulary.eos_id
        ends = is_end.any(2)
        return np.where(ends, is_end.argmax(2), token_ids.shape[2]), ends

    def _submit(
        self,
        indices: NDArray[np.int64],
        token_ids: NDArray[np.int64],
        lengths: NDArray[np.int64],
        ends: NDArray[np.bool_],
    ) -> None:
        captions = []
        for ids, length, ended in zip(
            token_ids.reshape(-1, token_ids.shape[2]), lengths.flatten(), ends.flatten(), strict=True
        ):
            words = self._word_ids[ids[:length]]
            captions.append(np.concatenate([words, self._end]) if ended else words)
        self._workers.submit(np.repeat(indices, token_ids.shape[1]).tolist(), captions)

    def _submit_greedy(self, batch: CaptionBatch) -> None:
        """Write the greedy captions in evaluation mode, as they would be written in use."""
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            encoded = self.model.encode(batch.regions)
        greedy = decode(self.model, encoded, self.vocabulary, self._greedy).token_ids.cpu().numpy()
        self.model.train(was_training)
        self._submit(batch.indices, greedy, *self._lengths(greedy))

    def _collect(self, pictures: int, *, needs_greedy: bool) -> tuple[Tensor, Tensor | None]:
        """Scores of the samples [B, Q] and of the greedy captions [B], on the host."""
        scores = [torch.from_numpy(values) for values in self._workers.collect()]
        return scores[0].view(pictures, -1), scores[1] if needs_greedy else None


def _places(captions_per_step: tuple[int, ...], pictures: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each of the S * B tokens as they are read: its step, and its caption * B + picture."""
    sizes = np.array(captions_per_step) * pictures
    return np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(size) for size in sizes])
