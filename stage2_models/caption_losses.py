"""What a captioner is trained by, and when: cross entropy first, then perhaps its own samples' CIDEr-D.

Everything here is a function of tensors; sampling is scheduled_sampling.py's and decoding's, scoring cider.py's.
Sources: scheduled sampling, Bengio et al. 2015 (arXiv 1506.03099); self-critical training, Rennie et al. 2017
(arXiv 1612.00563); its baseline by the other samples, Luo 2020 (arXiv 2003.09971).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from store_schema.errors import ConfigError

Baseline = Literal["greedy", "other_samples", "best_of_n"]


@dataclass(frozen=True, kw_only=True)
class CaptionLossConfig:
    """The two phases of training. Epochs are counted from 0."""

    label_smoothing: float = 0.0
    """Share of the target probability that cross entropy spreads over all other words."""
    scheduled_sampling_increase: float = 0.0
    """The model reads its own word in place of the true one with a probability that grows by this; 0: never."""
    scheduled_sampling_every_epochs: int = 5
    scheduled_sampling_max: float = 0.25
    self_critical_from_epoch: int = -1
    """The epoch from which samples' CIDEr-D replaces cross entropy; -1: never."""
    self_critical_lr: float = 0.0
    """Constant learning rate of that phase; 0: the schedule goes on."""
    baseline: Baseline = "greedy"
    """What a sample's score is compared with: the greedy caption's, the mean of the picture's other samples', or
    nothing: the best samples count, the others do not."""
    samples_per_image: int = 5
    reward_end: bool = True
    """The end of a caption counts as a word in the reward; without it, captions learn to end in mid-sentence."""
    score_workers: int = 1
    """Processes that score samples while the model goes on; 0: in this process."""

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "scheduled_sampling_increase", "scheduled_sampling_max"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"caption losses: {name} must be in [0, 1), it is {getattr(self, name)}")
        least = {
            "scheduled_sampling_every_epochs": 1, "self_critical_from_epoch": -1, "samples_per_image": 1,
            "score_workers": 0,
        }  # fmt: skip
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ConfigError(
                    f"caption losses: {name} must be at least {smallest}, it is {getattr(self, name)}"
                )
        if not 0.0 <= self.self_critical_lr < math.inf:
            raise ConfigError(
                f"caption losses: self_critical_lr must be 0 or more, it is {self.self_critical_lr}"
            )
        if self.baseline == "other_samples" and self.samples_per_image < 2:
            raise ConfigError(
                "caption losses: baseline 'other_samples' needs samples_per_image of at least 2"
            )

    def is_self_critical(self, epoch: int) -> bool:
        """Whether an epoch belongs to the second phase."""
        return 0 <= self.self_critical_from_epoch <= epoch

    def own_word_probability(self, epoch: int) -> float:
        """With which probability the model reads its own word in an epoch of cross entropy."""
        grown = self.scheduled_sampling_increase * (epoch // self.scheduled_sampling_every_epochs)
        return min(grown, self.scheduled_sampling_max)


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Sum the divergence of the predicted from the smoothed true distribution over M tokens.

    The true word has probability 1 - s, every other s / (V - 1). The entropy of that is taken off, so that the
    smallest possible loss is 0; it changes no gradient. (PyTorch's own label smoothing gives s / V to every word,
    the true one too, and keeps the entropy.)

    Args:
        logits: [M, V]. targets: [M] int64. smoothing: s in [0, 1); 0 is plain cross entropy.
    """
    if smoothing == 0.0:
        return F.cross_entropy(logits, targets, reduction="sum")
    log_probs = logits.log_softmax(-1)
    other = smoothing / (logits.shape[-1] - 1)
    of_targets = log_probs.gather(1, targets.unsqueeze(1)).sum()
    entropy = (1 - smoothing) * math.log(1 - smoothing) + smoothing * math.log(other)
    return len(targets) * entropy - (1 - smoothing - other) * of_targets - other * log_probs.sum()


def advantages(scores: Tensor, greedy_scores: Tensor | None, baseline: Baseline) -> Tensor:
    """Say how much better each sample is than what it is compared with, [B, Q].

    Args:
        scores: [B, Q] of the samples. greedy_scores: [B], of the greedy captions, for the baseline "greedy".
    """
    match baseline:
        case "greedy":
            assert greedy_scores is not None
            return scores - greedy_scores.unsqueeze(1)
        case "other_samples":
            others = scores.sum(1, keepdim=True) - scores
            return scores - others / (scores.shape[1] - 1)
        case "best_of_n":
            return (scores == scores.amax(1, keepdim=True)).to(scores.dtype)


def self_critical_loss(log_probs: Tensor, advantage: Tensor) -> Tensor:
    """Sum -log p of each token, times its caption's advantage: its gradient is that of the expected score.

    Divide by the number of tokens, ends included, for the mean that the published code takes.

    Args:
        log_probs, advantage: [M], of the samples' M words and ends.
    """
    return -torch.dot(log_probs, advantage.to(log_probs.dtype))
