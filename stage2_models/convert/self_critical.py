"""Checkpoints of ruotianluo/self-critical.pytorch: `butd convert-weights IN OUT --from self-critical-updown`.

The model "updown": `model.pth` (or `model-best.pth`) and the words, as JSON (`vocab.json` with ix_to_word, or the
data file cocotalk.json) or from the pickle `infos_*.pkl` beside it. Of the pickle only containers, strings and
numbers are read: every class that it names becomes an inert placeholder, nothing of it is executed. All sizes
are read from the tensors. Its four gates lie in the order input, forget, cell, output, ours has the cell last; its
two biases of an LSTM are one here.
"""

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stage2_models.captioner import CaptionerConfig, build_captioner
from stage2_models.convert.checkpoint_files import check_shapes, first_file, read_state_dict
from stage2_models.vocabulary import EOS, Vocabulary
from store_schema.errors import CheckpointError, InputNotFoundError, UsageError

UNK = "UNK"
"""The published unknown word: always the last of the vocabulary, where there is one."""

_SAME = {
    "embed.0.weight": "word_embedding.weight",
    "fc_embed.0.weight": "mean_embedding.weight",
    "fc_embed.0.bias": "mean_embedding.bias",
    "ctx2att.weight": "attention.region.weight",
    "ctx2att.bias": "attention.region.bias",
    "core.attention.h2att.weight": "attention.query.weight",
    "core.attention.h2att.bias": "attention.query.bias",
    "core.attention.alpha_net.weight": "attention.score.weight",
    "core.attention.alpha_net.bias": "attention.score.bias",
    "logit.weight": "classifier.weight",
    "logit.bias": "classifier.bias",
}
_LSTM = tuple(
    f"core.{lstm}.{part}"
    for lstm in ("att_lstm", "lang_lstm")
    for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
)
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def convert(
    source: Path, vocabulary: str = "", max_length: str = "20"
) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    """Read a checkpoint: our captioner's state dict, its description for model.json, and notes for the user.

    Args:
        source: the folder with weights and words, or the `.pth` file with the words beside it.
        vocabulary: path of the words, where they lie elsewhere.
        max_length: most words of a caption; the published default is 20.

    Errors: `InputNotFoundError` where a file is missing; `CheckpointError` where one cannot be read, or tensors are
    missing, left over or of another shape.
    """
    folder = source if source.is_dir() else source.parent
    weights_file = (
        source if source.is_file() else _file(folder, "the weights", "model-best.pth", "model.pth", "*.pth")
    )
    words_file = (
        Path(vocabulary)
        if vocabulary
        else _file(folder, "the words", "vocab.json", "cocotalk*.json", "infos_*.pkl")
    )
    if not max_length.isdigit() or int(max_length) < 1:
        raise UsageError(f"--set max_length={max_length}: a number of words from 1 on is expected")
    tensors = read_state_dict(weights_file)
    words = _read_words(words_file)
    config = _read_config(tensors, weights_file)
    state = _renamed(tensors, config, weights_file)
    feature_dim = tensors["fc_embed.0.weight"].shape[1]
    known = Vocabulary(
        (EOS, *words), pad_id=0, bos_id=0, eos_id=0, unk_id=len(words) if words[-1] == UNK else 0
    )
    model = build_captioner(config, feature_dim=feature_dim, vocabulary_size=len(known))
    check_shapes(
        state, model.state_dict(), weights_file, belongs="does the vocabulary belong to these weights?"
    )
    description = {
        "task": "caption",
        "model": asdict(config),
        "max_length": int(max_length),
        "vocabulary": known.to_json(),
        "feature_dim": feature_dim,
        "features_fingerprint": None,
        "detector": None,
        "selection": None,
        "box_source": None,
    }
    notes = [
        f"{len(words)} words from {words_file.name}; batch_norm {config.batch_norm!r}; captions have up to "
        f"{max_length} words",
        "the checkpoint does not say which features it was trained on: give it those of the same detector",
    ]
    if words[-1] != UNK:
        notes.append(f"its vocabulary has no {UNK!r} as its last word: words it lacks are read as the end")
    return state, description, notes


def _file(folder: Path, what: str, *patterns: str) -> Path:
    remedy = "copy it there, or name the words with --set vocabulary=FILE"
    return first_file(folder, what, *patterns, remedy=remedy)


def _read_words(path: Path) -> list[str]:
    """The words of indices 1 to n; index 0, begin, end and padding in one, is not among them."""
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            words = content.get("ix_to_word", content) if isinstance(content, dict) else None
        else:
            with path.open("rb") as file:
                content = _InertUnpickler(file, encoding="latin1").load()
            words = content.get("vocab") if isinstance(content, dict) else None
    except FileNotFoundError as error:
        raise InputNotFoundError(f"there is no vocabulary {path}") from error
    except Exception as error:  # a broken pickle can fail with any class
        raise CheckpointError(f"{path} cannot be read as a vocabulary: {error}") from error
    if not isinstance(words, dict) or not words or not all(isinstance(word, str) for word in words.values()):
        raise CheckpointError(f"{path} holds no vocabulary: words by their index from 1 on are expected")
    by_index = {str(index): word for index, word in words.items()}
    try:
        return [by_index[str(index)] for index in range(1, len(by_index) + 1)]
    except KeyError as error:
        raise CheckpointError(
            f"{path}: {len(by_index)} words, but none of index {error}; expected 1 to {len(by_index)}"
        ) from error


class _Inert:
    """Stands for any class that a pickle names; takes whatever it is given and does nothing."""

    def __init__(self, *arguments: object, **named: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        return _Inert


def _read_config(tensors: Mapping[str, Tensor], path: Path) -> CaptionerConfig:
    """The sizes and the batch normalisation; dropout is as that code trains by default."""
    for name in ("embed.0.weight", "ctx2att.weight", "core.lang_lstm.weight_hh", "fc_embed.0.weight"):
        if name not in tensors:
            raise CheckpointError(
                f"{path} lacks the tensor {name!r}: is it a checkpoint of self-critical.pytorch's model 'updown'?"
            )
    around = "att_embed.4.running_mean" in tensors
    before = "att_embed.0.running_mean" in tensors
    return CaptionerConfig(
        hidden_dim=tensors["core.lang_lstm.weight_hh"].shape[1],
        embed_dim=tensors["embed.0.weight"].shape[1],
        attention_dim=tensors["ctx2att.weight"].shape[0],
        dropout=0.5,
        embed_regions=True,
        batch_norm="around" if around else "before" if before else "none",
    )


def _renamed(tensors: Mapping[str, Tensor], config: CaptionerConfig, path: Path) -> dict[str, Tensor]:
    """Our names to tensors, each of theirs used once."""
    linear = "att_embed.0" if config.batch_norm == "none" else "att_embed.1"
    names = _SAME | {f"{linear}.{part}": f"region_embedding.{part}" for part in ("weight", "bias")}
    if config.batch_norm != "none":
        names |= {f"att_embed.0.{part}": f"norm_before.{part}" for part in _NORM}
    if config.batch_norm == "around":
        names |= {f"att_embed.4.{part}": f"norm_after.{part}" for part in _NORM}
    expected = {*names, *_LSTM}
    missing, unknown = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
    if missing or unknown:
        raise CheckpointError(
            f"{path} does not hold the tensors of this model: missing {missing or 'none'}, unknown {unknown or 'none'}"
        )
    return {ours: tensors[theirs] for theirs, ours in names.items()} | _lstms(
        tensors, config.hidden_dim, path
    )


def _lstms(tensors: Mapping[str, Tensor], hidden: int, path: Path) -> dict[str, Tensor]:
    """The gates' matrices, cut by what they are multiplied with; inputs there: [h2, mean, word] and [region, h1]."""
    parts = {}
    for name in _LSTM:
        if tensors[name].shape[0] != 4 * hidden:
            raise CheckpointError(
                f"{path}: {name} has {tensors[name].shape[0]} rows, {4 * hidden} are expected"
            )
        enter, forget, candidate, leave = tensors[name].chunk(4)
        parts[name.removeprefix("core.")] = torch.cat([enter, forget, leave, candidate])
    first, second = parts["att_lstm.weight_ih"], parts["lang_lstm.weight_ih"]
    return {
        "word_gates.weight": first[:, 2 * hidden :],
        "word_gates.bias": parts["att_lstm.bias_ih"] + parts["att_lstm.bias_hh"],
        "mean_gates.weight": first[:, hidden : 2 * hidden],
        "attention_recurrence.weight": torch.cat([parts["att_lstm.weight_hh"], first[:, :hidden]], 1),
        "region_gates.weight": second[:, :hidden],
        "language_recurrence.weight": torch.cat([second[:, hidden:], parts["lang_lstm.weight_hh"]], 1),
        "language_recurrence.bias": parts["lang_lstm.bias_ih"] + parts["lang_lstm.bias_hh"],
    }
