"""The public programs themselves as rivals, from checkouts that the user names; none of their code is kept here.

Of hengyuan-hu/bottom-up-attention-vqa it needs `base_model.py` and what that imports, of
ruotianluo/self-critical.pytorch `captioning/models/AttModel.py` and what that imports (six among it). Their weights
come to ours through the converters of `butd convert-weights` (butd-vqa, self-critical-updown), so that both are the
same model.
"""

import importlib
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage2_models.captioner import Captioner, CaptionerConfig, build_captioner
from stage2_models.convert import butd_vqa, self_critical
from stage2_models.vocabulary import EOS, Vocabulary
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
            converted, description, _ = butd_vqa.convert(folder)
        model = VqaModel(
            VqaConfig(**description["model"]),
            feature_dim=description["feature_dim"],
            vocabulary_size=self.num_words + 1,
            pad_id=self.num_words,
            num_answers=self.num_answers,
        )
        model.load_state_dict(converted)
        return model


class SelfCriticalCheckout(nn.Module):
    """Its captioner `updown`, without dropout and BatchNorm, on pictures with equally many regions (no masks).

    Args:
        path: the checkout. num_words: outputs, index 0 among them: begin, end and padding in one.
        max_length: most words of a caption.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_words: int,
        feature_dim: int,
        hidden: int,
        embed: int,
        attention: int,
        max_length: int,
    ) -> None:
        super().__init__()
        words = [f"w{number}" for number in range(1, num_words)]
        self.vocabulary = Vocabulary((EOS, *words), pad_id=0, bos_id=0, eos_id=0, unk_id=0)
        self.by_index = {str(number): word for number, word in enumerate(words, 1)}
        options = SimpleNamespace(
            vocab=self.by_index,
            vocab_size=len(words),
            rnn_size=hidden,
            input_encoding_size=embed,
            att_hid_size=attention,
            fc_feat_size=feature_dim,
            att_feat_size=feature_dim,
            num_layers=1,  # of no effect on this model
            drop_prob_lm=0.0,
            use_bn=0,
            max_length=max_length,
            seq_length=max_length,
        )
        self.model = _updown_module(path).UpDownModel(options)

    def loss(self, features: Tensor, captions: Tensor, mask: Tensor) -> Tensor:
        """As its `LossWrapper` and `LanguageModelCriterion`: cross entropy of a token.

        Args:
            features: [B, K, D], once for each picture; the model repeats what it made of them for the captions.
            captions: [B * Q, T + 1], bos first, those of a picture one after the other.
            mask: [B * Q, T], True for words and one eos.
        """
        log_probs = self.model(features.mean(1), features, captions[:, :-1], None)  # [B * Q, T, V]
        picked = log_probs.gather(2, captions[:, 1:].unsqueeze(2)).squeeze(2)
        loss: Tensor = -(picked * mask).sum() / mask.sum()
        return loss

    @torch.inference_mode()
    def search(self, features: Tensor, beam_size: int) -> list[list[int]]:
        """The best caption of each picture, without eos, as its evaluation asks for it; a beam of 1 is greedy."""
        options = {"sample_method": "greedy", "beam_size": beam_size, "sample_n": 1}
        token_ids, _ = self.model(features.mean(1), features, None, opt=options, mode="sample")
        return [[word for word in row if word != self.vocabulary.eos_id] for row in token_ids.tolist()]

    def as_ours(self) -> Captioner:
        """Our captioner with its weights, by the converter; of the same `vocabulary`."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            torch.save(self.model.state_dict(), folder / "model.pth")
            (folder / "vocab.json").write_text(json.dumps(self.by_index))
            converted, description, _ = self_critical.convert(folder)
        model = build_captioner(
            CaptionerConfig(**description["model"]),
            feature_dim=description["feature_dim"],
            vocabulary_size=len(self.vocabulary),
        )
        model.load_state_dict(converted)
        return model


def _updown_module(path: Path) -> ModuleType:
    """Import its AttModel.py without the packages' own `__init__`, which want transformers and more."""
    if not (path / "captioning" / "models" / "AttModel.py").is_file():
        raise SystemExit(
            f"{path}: a checkout of self-critical.pytorch expected, there is no captioning/models/AttModel.py"
        )
    for name in ("captioning", "captioning.models", "captioning.utils"):
        package = ModuleType(name)
        package.__path__ = [str(path.joinpath(*name.split(".")))]
        sys.modules[name] = package
    return importlib.import_module("captioning.models.AttModel")
