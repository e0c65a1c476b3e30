"""The models that training left in run folders: what each does, and which part it plays in a comparison."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import read_toml
from store_schema.artifacts import find_model_dir, read_model_json
from store_schema.errors import InputNotFoundError


@dataclass(frozen=True)
class TrainedModel:
    """A model found in a run folder: what it does, which part it plays in a comparison."""

    name: str
    model_dir: Path
    info: Mapping[str, Any]
    run: Path | None
    """The run that it comes from; None for a model folder on its own."""

    @property
    def task(self) -> str:
        """ "detector", "caption" or "vqa"."""
        return str(self.info["task"])

    @property
    def role(self) -> str:
        """ "regions", "grid", "paper" or "question_only": the key in the report."""
        if self.task == "vqa" and self.info["model"]["question_only"]:
            return "question_only"
        if self.info.get("box_source") == "grid":
            return "grid"
        if self.task == "vqa" and self.info["model"]["form"] == "paper":
            return "paper"
        return "regions"

    @property
    def title(self) -> str:
        """A phrase for tables."""
        if self.task == "caption":
            return "top-down attention, two LSTMs"
        return {"question_only": "no regions", "paper": "paper's form"}.get(
            self.role, f"{self.info['model']['form']} form"
        )

    def run_config(self) -> Mapping[str, Any]:
        """The resolved configuration of the run; empty for a model folder on its own."""
        file = self.run / "config.toml" if self.run is not None else None
        return read_toml(file) if file is not None and file.is_file() else {}


def find_models(path: Path) -> list[TrainedModel]:
    """List the models of a run, a model folder, or a folder of runs (those with a checkpoint).

    Errors: `InputNotFoundError` where there is none, `CheckpointError` where one is cut short.
    """
    if not path.is_dir():
        raise InputNotFoundError(f"a run, a model or a folder of runs expected at {path}, there is no folder")
    runs = sorted(child.parent for child in path.glob("*/run.json"))
    # A run that has only begun has no checkpoint yet: neither pointer is there.
    trained = [run for run in runs if any((run / "checkpoints").glob("*.json"))]
    if runs and not trained:
        raise InputNotFoundError(
            f"{path} holds no trained model yet, only runs without a checkpoint: "
            f"{', '.join(run.name for run in runs)}; let 'butd train' go on with them"
        )
    return [_model_at(run) for run in trained or [path]]


def _model_at(path: Path) -> TrainedModel:
    model_dir = find_model_dir(path)
    is_run = (path / "run.json").is_file()
    return TrainedModel(path.name, model_dir, read_model_json(model_dir), path if is_run else None)
