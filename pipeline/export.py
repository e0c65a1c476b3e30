"""A trained model as one folder to give away: what it takes to use it, and a card that says what it is.

    <folder>/model.safetensors   weights
             model.json          architecture, vocabulary, answers, the detector that made its features
             config.toml         how it was trained, where that is known
             README.md           the model card

`butd caption`, `butd answer`, `butd evaluate` and `butd detect --weights` take the folder from anywhere.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import config_to_toml
from pipeline.trained_models import TrainedModel, find_models
from pipeline.training.records import RECORD, read_record
from store_schema.artifacts import DESCRIPTION, WEIGHTS, model_fingerprint
from store_schema.errors import UsageError

CONFIG, CARD = "config.toml", "README.md"

_USE = {
    "caption": "butd caption {folder} photo.jpg",
    "vqa": 'butd answer {folder} "what is on the table?" photo.jpg',
    "detector": "butd detect photos/ --weights {folder} --store regions.zarr",
}


def export_model(source: Path, out: Path) -> TrainedModel:
    """Write a run's best model, or the model of a checkpoint, as the folder `out`, whole or not at all.

    Errors: `InputNotFoundError`, `CheckpointError`; `UsageError` where `out` exists or `source` holds several runs.
    """
    models = find_models(source)
    if len(models) > 1:
        names = ", ".join(model.name for model in models)
        raise UsageError(f"{source} holds several runs ({names}); name one of them")
    if out.exists():
        raise UsageError(f"{out} exists already; give a new folder, or remove it first")
    model = models[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        partial.chmod(0o755)
        for name in (WEIGHTS, DESCRIPTION):
            shutil.copyfile(model.model_dir / name, partial / name)
        if config := model.run_config():
            (partial / CONFIG).write_text(config_to_toml(config), encoding="utf-8")
        (partial / CARD).write_text(model_card(model, out.name), encoding="utf-8")
        os.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return model


def model_card(model: TrainedModel, folder: str) -> str:
    """Say in Markdown what a model does, what it was trained on, what it reads, and how good it was."""
    info = model.info
    facts: dict[str, Any] = {
        "task": f"{model.task} ({model.title})" if model.task != "detector" else "detector",
        "fingerprint": model_fingerprint(model.model_dir),
        **_training_facts(model),
        **_feature_facts(info),
    }
    lines = [f"# {folder}", "", "A model of the bottom-up / top-down toolkit `butd`.", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items() if value]
    lines += ["", "## Use", "", "```", _USE[model.task].format(folder=folder), "```", ""]
    if model.task != "detector" and info.get("features_fingerprint"):
        lines += [
            "It reads features of the detector named above only; a store of others is refused. Where the detector's",
            "weights lie elsewhere, say so with `--weights`.",
            "",
        ]
    return "\n".join(lines)


def _training_facts(model: TrainedModel) -> dict[str, Any]:
    """What the checkpoint and the run know: how far it was trained, on what, and its scores."""
    facts: dict[str, Any] = {}
    if (model.model_dir / RECORD).is_file():
        record = read_record(model.model_dir)
        facts["trained for"] = f"{record.epoch} epochs, {record.step:,} steps"
        scores = {name: value for name, value in record.metrics.items() if "/" not in name}
        facts["scores in training"] = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
    inputs = model.run_config().get("inputs", {})
    facts["trained on"] = ", ".join(Path(str(value)).name for value in inputs.values())
    source = model.info.get("source", {})
    facts["converted from"] = source.get("kind")
    return facts


def _feature_facts(info: Mapping[str, Any]) -> dict[str, Any]:
    detector = info.get("detector") or {}
    return {
        "features": f"{info['feature_dim']} numbers a region" if info.get("feature_dim") else None,
        "detector of its features": detector.get("name"),
        "fingerprint of the detector": detector.get("fingerprint"),
        "fingerprint of its features": info.get("features_fingerprint"),
    }
