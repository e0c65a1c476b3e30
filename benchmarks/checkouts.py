"""The public bottom-up-attention-vqa itself as a rival, from a checkout that the user names; none of it is kept here.

Needs `base_model.py` and what it imports (hengyuan-hu/bottom-up-attention-vqa). Its weights come to ours through
`butd convert-weights --from butd-vqa`, so that both are the same model.
"""

import importlib
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_models.convert.butd_vqa import convert
from stage2_models.vqa import VqaModel
from stage2_models.vqa_config import VqaConfig


class ButdVqaCheckout(nn.Module):
    """Its model with weight-norm product attention (`build_baseline0_newatt`)."""

    def __init__(
        self, path: Path, *, num_words: int, feature_dim: int, hidden: int, num_answers: int
    ) -> None:
        super().__init__()
        if not (path / "base_model.py").is_file():
            raise SystemExit(
                f"{path}: a checkout of bottom-up-attention-vqa expected, there is no base_model.py"
            )
        sys.path.insert(0, str(path))
        dictionary = SimpleNamespace(ntoken=num_words)
        dataset = SimpleNamespace(dictionary=dictionary, v_dim=feature_dim, num_ans_candidates=num_answers)
        self.model = importlib.import_module("base_model").build_baseline0_newatt(dataset, hidden)
        self.num_words, self.num_answers = num_words, num_answers

    def forward(self, features: Tensor, questions: Tensor) -> Tensor:
        """Answer logits [B, A] of questions [B, 14], padded on the left with `num_words`, from features [B, K, D]."""
        logits: Tensor = self.model(features, None, questions, None)
        return logits

    def loss(self, features: Tensor, questions: Tensor, targets: Tensor) -> Tensor:
        """As its training loop: the mean over all, times the number of answers."""
        logits = self(features, questions)
        return F.binary_cross_entropy_with_logits(logits, targets) * targets.shape[1]

    def as_ours(self) -> VqaModel:
        """Our model with its weights, by the converter."""
        words = [f"w{number}" for number in range(self.num_words)]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            state = {f"module.{key}": value for key, value in self.model.state_dict().items()}
            torch.save(state, folder / "model.pth")
            (folder / "dictionary.json").write_text(json.dumps({"idx2word": words}))
            labels = {f"a{number}": number for number in range(self.num_answers)}
            (folder / "ans2label.json").write_text(json.dumps(labels))
            converted, description, _ = convert(folder)
        model = VqaModel(
            VqaConfig(**description["model"]),
            feature_dim=description["feature_dim"],
            vocabulary_size=self.num_words + 1,
            pad_id=self.num_words,
            num_answers=self.num_answers,
        )
        model.load_state_dict(converted)
        return model
