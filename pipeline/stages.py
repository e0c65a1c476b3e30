"""The stages in the order of the data, as functions: what the command line calls and a script may call.

    train_detector   tables with boxes            -> runs/<name>
    detect           pictures, a detector         -> region store      (stage one, see extraction.py)
    train_captioner  tables with captions, store  -> runs/<name>       (stage two)
    train_vqa        tables with questions, store -> runs/<name>       (stage two)

Evaluation and the report follow in evaluation/ and report.py. A stage's own packages are imported when it runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import load_config
from store_schema.errors import ConfigError, InputNotFoundError
from store_schema.remote import StorePath

if TYPE_CHECKING:
    from pipeline.training.task import Task
    from pipeline.training.trainer import TrainResult

CONFIGS = Path(__file__).parent / "configs"
DEFAULT_CONFIGS = {"detector": "detector-small", "caption": "caption-small", "vqa": "vqa-binding"}


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What every training run can be told."""

    config: str | None = None
    """Name of a shipped configuration or path of a TOML file; the small one of the model if not given."""
    sets: tuple[str, ...] = ()
    """`section.key=value`; sections are model, data, training, losses (detector, captioner), backbone (detector)."""
    resume: str = "auto"
    """"auto", "latest", "best", a checkpoint's name or a path; "auto" goes on where the run stopped."""
    time_limit_seconds: float | None = None
    """Stop in time, with everything saved."""


def train_detector(
    tables: Path, out: Path, options: TrainOptions, *, images_root: Path | None = None
) -> "TrainResult":
    """Train a Faster R-CNN with attribute head on the `objects` tables.

    Args:
        tables: folder with images, objects and (for attributes) object_attributes.
        out: the run folder; a run that stopped there goes on.
        options: configuration, resume, time limit.
        images_root: where the tables' paths start; the tables' folder if not given.

    Errors: `ConfigError`, `InputNotFoundError`, `TableError`, `UsageError`, `CheckpointError`.
    """
    _refuse_missing_folder(tables)
    from stage1_detect.config import DetectorConfig
    from stage1_detect.detection_task import DetectionDataConfig, build_detection_task
    from stage1_detect.losses import LossConfig
    from stage1_detect.pretrained import BackboneConfig

    def build(sections: Mapping[str, Any]) -> "Task[Any]":
        return build_detection_task(
            tables,
            config=sections["model"],
            data=sections["data"],
            losses=sections["losses"],
            backbone=sections["backbone"],
            images_root=images_root,
        )

    types = {
        "model": DetectorConfig,
        "backbone": BackboneConfig,
        "losses": LossConfig,
        "data": DetectionDataConfig,
    }
    return _train("detector", types, build, {"tables": str(tables)}, out, options)


def train_captioner(tables: Path, store: StorePath, out: Path, options: TrainOptions) -> "TrainResult":
    """Train the two-LSTM captioner on the captions table and a store; errors as above, and `StoreError`."""
    _refuse_missing_folder(tables)
    from stage2_models.caption_task import CaptionDataConfig, CaptionLossConfig, build_caption_task
    from stage2_models.captioner import CaptionerConfig

    def build(sections: Mapping[str, Any]) -> "Task[Any]":
        return build_caption_task(
            tables,
            store,
            model=sections["model"],
            data=sections["data"],
            losses=sections["losses"],
            **_process(sections),
        )

    types = {"model": CaptionerConfig, "losses": CaptionLossConfig, "data": CaptionDataConfig}
    return _train("caption", types, build, {"tables": str(tables), "store": str(store)}, out, options)


def train_vqa(tables: Path, store: StorePath | None, out: Path, options: TrainOptions) -> "TrainResult":
    """Train a VQA model on questions, answers and a store; without a store, the question-only baseline."""
    _refuse_missing_folder(tables)
    from stage2_models.vqa_config import VqaConfig
    from stage2_models.vqa_data import VqaDataConfig
    from stage2_models.vqa_task import build_vqa_task

    def build(sections: Mapping[str, Any]) -> "Task[Any]":
        if sections["data"].word_vectors and sections["training"].init != "default":
            raise ConfigError(
                f"training.init={sections['training'].init!r} would overwrite the words of data.word_vectors; leave one"
            )
        return build_vqa_task(
            tables, store, model=sections["model"], data=sections["data"], **_process(sections)
        )

    inputs = {"tables": str(tables)} | ({} if store is None else {"store": str(store)})
    return _train("vqa", {"model": VqaConfig, "data": VqaDataConfig}, build, inputs, out, options)


def find_config(name_or_path: str) -> Path:
    """Return the file of a shipped configuration, or the path itself where it names a file.

    Errors: `InputNotFoundError` naming the shipped ones.
    """
    shipped = CONFIGS / f"{name_or_path}.toml"
    if shipped.is_file():
        return shipped
    path = Path(name_or_path)
    if path.is_file():
        return path
    names = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.toml")))
    raise InputNotFoundError(f"--config {name_or_path}: neither a file nor one of the shipped {names}")


def _train(
    name: str,
    types: Mapping[str, type],
    build: Callable[[Mapping[str, Any]], "Task[Any]"],
    inputs: Mapping[str, str],
    out: Path,
    options: TrainOptions,
) -> "TrainResult":
    """Read the configuration, seed, build the task, train: the same for every model."""
    from pipeline.training.config import TrainingConfig
    from pipeline.training.resume import parent_config_file

    # A branch changes the configuration of the run that it comes from, unless another one is named.
    parent = parent_config_file(out, options.resume) if options.config is None else None
    file = parent or find_config(options.config or DEFAULT_CONFIGS[name])
    types = {**types, "training": TrainingConfig}
    sections = load_config(types, file, options.sets, unread_sections=("inputs",))
    import torch

    from pipeline.training.randomness import seed_everything
    from pipeline.training.trainer import train

    training: TrainingConfig = sections["training"]
    if training.num_threads:
        torch.set_num_threads(training.num_threads)
    seed_everything(training.seed)
    return train(
        build(sections),
        training,
        out,
        resolved_config={**sections, "inputs": inputs},
        resume=options.resume,
        time_limit_seconds=options.time_limit_seconds,
    )


def _process(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Where this process computes, and its part of a distributed run (as torchrun says)."""
    from pipeline.training.processes import rank_and_world_size, resolve_device

    rank, world_size = rank_and_world_size()
    return {"device": resolve_device(sections["training"].device), "rank": rank, "world_size": world_size}


def _refuse_missing_folder(tables: Path) -> None:
    """Say so before a stage is imported, which takes seconds."""
    if not tables.is_dir():
        state = "it is a file" if tables.exists() else "there is none"
        raise InputNotFoundError(f"a folder with the data set's tables expected at {tables}, {state}")
