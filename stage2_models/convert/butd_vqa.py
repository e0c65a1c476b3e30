"""Checkpoints of hengyuan-hu/bottom-up-attention-vqa into a model folder: `butd convert-weights --from butd-vqa`.

What is needed lies in that code's folders: `model.pth`, the dictionary of words (`dictionary.pkl`, or JSON with
"idx2word") and the answers (`trainval_ans2label.pkl` or `ans2label.json`). Its pickles hold plain containers only
and are read by a reader that knows nothing else. Both of its models are known, "newatt" and "baseline0"; which
one it is, and all sizes, are read from the tensors. Every tensor is used once or named.
"""

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from stage2_models.answers import AnswerVocabulary
from stage2_models.convert.checkpoint_files import check_shapes, first_file, read_state_dict
from stage2_models.vocabulary import PAD, Vocabulary
from stage2_models.vqa import VqaModel
from stage2_models.vqa_config import VqaConfig
from store_schema.errors import CheckpointError

QUESTION_SLOTS = 14
"""Words of a question that the published code reads, padding included."""

_GRU = {
    f"q_emb.rnn.{name}_l0": f"question.gru.{name}_l0"
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
}
_LAYERS = {
    "q_net.main.0": "answerer.joint_question",
    "v_net.main.0": "answerer.joint_regions",
    "classifier.main.0": "answerer.joint",
    "classifier.main.3": "answerer.answers",
    "v_att.linear": "answerer.attention_score",
}
_PRODUCT_LAYERS = {
    "v_att.v_proj.main.0": "answerer.attention_region",
    "v_att.q_proj.main.0": "answerer.attention_question",
}
_ADDITIVE_LAYERS = {"v_att.nonlinear.main.0": "answerer.attention_both"}


def convert(source: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Read a checkpoint: our model's state dict, its description for model.json, and notes for the user.

    Args:
        source: the folder with the three files, or the `.pth` file with the others beside it.

    Errors: `InputNotFoundError` where a file is missing; `CheckpointError` where one cannot be read, holds more
    than tensors and containers, or tensors are missing, left over or of another shape.
    """
    folder = source if source.is_dir() else source.parent
    weights_file = source if source.is_file() else _file(folder, "the weights", "model.pth", "*.pth")
    tensors = {name: value.float() for name, value in read_state_dict(weights_file).items()}
    words = _read_words(_file(folder, "the dictionary", "dictionary.json", "dictionary.pkl"))
    answers = _read_answers(
        _file(folder, "the answers", "ans2label.json", "trainval_ans2label.pkl", "*ans2label.pkl")
    )
    config = _read_config(tensors, weights_file)
    pad_id = len(words)  # one row more than words: zeros, which unknown words are read as, too
    vocabulary = Vocabulary((*words, PAD), pad_id=pad_id, bos_id=pad_id, eos_id=pad_id, unk_id=pad_id)
    model = VqaModel(
        config,
        feature_dim=_feature_dim(tensors),
        vocabulary_size=len(vocabulary),
        pad_id=pad_id,
        num_answers=len(answers),
    )
    state = _renamed(tensors, config, weights_file)
    check_shapes(
        state,
        model.state_dict(),
        weights_file,
        belongs="do the dictionary and the answers belong to these weights?",
    )
    description = {
        "task": "vqa",
        "model": asdict(config),
        "max_question_length": QUESTION_SLOTS,
        "tokeniser": "butd-vqa",
        "vocabulary": vocabulary.to_json(),
        "answers": list(answers.answers),
        "feature_dim": _feature_dim(tensors),
        "features_fingerprint": None,
        "detector": None,
        "selection": None,
        "box_source": None,
    }
    notes = [
        f"it is of the form {config.form!r}; questions are read over {QUESTION_SLOTS} "
        "slots, unknown words read as padding",
        "the checkpoint does not say which features it was trained on: give it those of the same detector",
    ]
    return state, description, notes


def _file(folder: Path, what: str, *patterns: str) -> Path:
    remedy = "copy it from the data folder of the code that trained the checkpoint"
    return first_file(folder, what, *patterns, remedy=remedy)


def _read_words(path: Path) -> list[str]:
    """The words in the order of their ids; the pickle is a list of word2idx and idx2word."""
    content = _read_plain(path)
    words = content.get("idx2word") if isinstance(content, dict) else None
    if isinstance(content, list) and len(content) == 2:
        words = content[1]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise CheckpointError(f"{path} holds no dictionary: [word2idx, idx2word] or 'idx2word' is expected")
    return words


def _read_answers(path: Path) -> AnswerVocabulary:
    """The answers in the order of their labels, which must be 0 to n - 1."""
    labels = _read_plain(path)
    if not isinstance(labels, dict) or sorted(labels.values()) != list(range(len(labels))):
        raise CheckpointError(f"{path} does not give every answer a label of its own from 0 on")
    return AnswerVocabulary(tuple(sorted(labels, key=labels.__getitem__)))


def _read_plain(path: Path) -> Any:  # noqa: ANN401
    """JSON, or a pickle of containers, strings and numbers; anything else in it is refused unexecuted."""
    try:
        content = path.read_bytes()
        return (
            json.loads(content)
            if path.suffix == ".json"
            else _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
        )
    except (OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}, plain containers are expected; not executed"
        )


def _read_config(tensors: Mapping[str, Tensor], path: Path) -> VqaConfig:
    """Which of the two models it is, and its sizes. Dropout is as that code trains them."""
    product = "v_att.v_proj.main.0.weight_v" in tensors
    for name in ("w_emb.emb.weight", "q_emb.rnn.weight_hh_l0", "v_net.main.0.weight_v"):
        if name not in tensors:
            raise CheckpointError(
                f"{path} lacks the tensor {name!r}: is it a checkpoint of bottom-up-attention-vqa?"
            )
    return VqaConfig(
        form="relu-product" if product else "relu-additive",
        embed_dim=tensors["w_emb.emb.weight"].shape[1],
        hidden_dim=tensors["q_emb.rnn.weight_hh_l0"].shape[1],
        normalise_features=False,
        loss="bce",
        dropout=0.5,
        attention_dropout=0.2 if product else 0.0,
        question_slots=QUESTION_SLOTS,
    )


def _feature_dim(tensors: Mapping[str, Tensor]) -> int:
    return tensors["v_net.main.0.weight_v"].shape[1]


def _renamed(tensors: Mapping[str, Tensor], config: VqaConfig, path: Path) -> dict[str, Tensor]:
    """Our names to their tensors; old torch versions saved the length of a matrix as [1] in place of []."""
    names = {"w_emb.emb.weight": "question.embedding.weight", **_GRU}
    layers = _LAYERS | (_PRODUCT_LAYERS if config.form == "relu-product" else _ADDITIVE_LAYERS)
    for theirs, ours in layers.items():
        names[f"{theirs}.bias"] = f"{ours}.bias"
        names[f"{theirs}.weight_g"] = f"{ours}.parametrizations.weight.original0"
        names[f"{theirs}.weight_v"] = f"{ours}.parametrizations.weight.original1"
    missing, unknown = sorted(names.keys() - tensors.keys()), sorted(tensors.keys() - names.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{path} does not hold the tensors of this model: missing {missing or 'none'}, unknown {unknown or 'none'}"
        )
    return {
        ours: tensors[theirs].reshape(()) if theirs.endswith("weight_g") else tensors[theirs]
        for theirs, ours in names.items()
    }
