"""Score trained models on any tables, beside their trivial baselines: report.json, predictions, examples.

A folder of runs is scored whole: every detector, captioner and VQA model in it, each on the store that has its
features; a store that is not given is made with the detector that the model names. Only pictures of one split
count, and none of them should have been trained on.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.baselines import (
    answer_baseline,
    caption_baselines,
    knows_objects,
    truth_of_captions,
    truth_of_statements,
)
from pipeline.caption_results import java_scores, name_as_published
from pipeline.result_files import vqa_results
from pipeline.trained_models import TrainedModel, find_models
from store_schema.errors import StoreMismatchError, UsageError
from store_schema.reader import RegionStore
from store_schema.remote import StorePath
from store_schema.tables import has_table, read_table

if TYPE_CHECKING:
    from stage2_models.caption_evaluation import CaptionEvaluation
    from stage2_models.vqa_evaluation import VqaEvaluation

logger = logging.getLogger(__name__)

SPLIT_PREFERENCE = ("test", "val")
SAMPLES_EACH = 5
"""Captions drawn of each picture: the likeliest caption seldom states a relation or a number, samples do."""


@dataclass(kw_only=True)
class EvaluationSettings:
    """On what models are scored, and how."""

    tables: Path
    out: Path
    stores: Sequence[StorePath] = ()
    images_root: Path | None = None
    split: str = "auto"
    """A split of the tables; "auto": test if there is one, else val, else everything."""
    beam_size: int = 1
    java_metrics: tuple[str, ...] = ()
    """"meteor", "spice": of captions, by the official Java programs."""
    num_examples: int = 12
    boxes: str | None = None
    """For models trained on given boxes: what gives boxes, where a store has to be made."""
    weights: str | None = None
    """The detector's weights, where they no longer lie where the models say."""


@dataclass
class Evaluated:
    """Results by role, with what drawing examples needs."""

    detector: dict[str, float] | None = None
    captions: dict[str, tuple[TrainedModel, "CaptionEvaluation", RegionStore]] = field(default_factory=dict)
    sampled: dict[str, dict[str, float]] = field(default_factory=dict)
    """What `truth_of_statements` says of each captioner's own samples."""
    answers: dict[str, tuple[TrainedModel, "VqaEvaluation", RegionStore | None]] = field(default_factory=dict)


def evaluate(path: Path, settings: EvaluationSettings) -> dict[str, Any]:
    """Score every model at `path` and write report.json, predictions/ and examples/ into `settings.out`.

    Args:
        path: a run, a model folder, or a folder of runs.
        settings: tables, stores, split and folder to write.

    Returns:
        What report.json holds; its keys are those of docs/report.md.

    Errors: `InputNotFoundError` where there is no model; those of tables, stores and models.
    """
    started = time.monotonic()
    models = find_models(path)
    tables = settings.tables
    split = choose_split(tables, settings.split)
    logger.info("%d models on %s, split %r", len(models), tables, split)
    stores = _Stores(settings, split)
    stores.refuse_foreign(models)
    done = Evaluated()
    for model in models:
        logger.info("scoring %s (%s, %s)", model.name, model.task, model.role)
        if model.task == "detector":
            if done.detector is not None:
                logger.warning("a second detector, %s: its scores stand in the report", model.name)
            done.detector = _score_detector(model, settings, split)
        elif model.task == "caption" and has_table(tables, "captions"):
            _score_captioner(model, settings, split, stores.of(model), done)
        elif model.task == "vqa" and has_table(tables, "questions"):
            store = None if model.role == "question_only" else stores.of(model)
            _score_vqa(model, tables, split, store, done)
        else:
            logger.warning("%s: not scored, %s has no table for the task %s", model.name, tables, model.task)
    _rename_only_paper(done)
    scored = _report(models, done, settings, split)
    scored["seconds"] = {"evaluate": round(time.monotonic() - started, 2)}
    report: dict[str, Any] = _without_nan(scored)
    settings.out.mkdir(parents=True, exist_ok=True)
    _write_predictions(done, settings.tables, settings.out)
    from pipeline.examples import write_examples

    write_examples(done, settings, split)
    write_json(settings.out / "report.json", report)
    return report


def choose_split(tables: Path, wanted: str) -> str:
    """The split to score: as wanted, or with "auto" the first of test, val that has pictures, else the only one.

    Errors: `UsageError` naming the splits that there are.
    """
    there = sorted(read_table(tables, "images")["split"].unique())
    if wanted == "auto":
        wanted = next(
            (split for split in SPLIT_PREFERENCE if split in there), there[0] if len(there) == 1 else ""
        )
    if wanted not in there:
        raise UsageError(f"{tables} has the splits {there}; name one of them with --split, not {wanted!r}")
    return wanted


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401  (anything that JSON can hold)
    """Write a JSON file for people and programs, complete or not at all. NaN becomes null."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(
        json.dumps(_without_nan(content), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    partial.replace(path)


class _Stores:
    """The store of each model's features: given, or made when it is asked for."""

    def __init__(self, settings: EvaluationSettings, split: str) -> None:
        self.settings = settings
        self.split = split
        self.by_features: dict[str, RegionStore] = {}
        for path in settings.stores:
            store = RegionStore.open(path)
            self.by_features[store.features_fingerprint] = store

    def refuse_foreign(self, models: Sequence[TrainedModel]) -> None:
        """Refuse given stores of which none fits any model, with both fingerprints named."""
        expected = {model.info.get("features_fingerprint") for model in models} - {None}
        if self.by_features and expected and not expected & self.by_features.keys():
            store = next(iter(self.by_features.values()))
            raise StoreMismatchError(
                f"{store.path} holds features {store.features_fingerprint} (detector "
                f"{store.metadata.detector['name']}), the models were trained on {sorted(map(str, expected))[0]}; "
                "give a store made with the models' detector, or leave --store out and it is made"
            )

    def of(self, model: TrainedModel) -> RegionStore:
        """The store for a model; stage one runs where there is none."""
        if model.info["features_fingerprint"] is None:
            return self._of_converted(model)
        features = str(model.info["features_fingerprint"])
        if features not in self.by_features:
            from pipeline.extraction import make_store, spec_named_by

            spec = spec_named_by(model.info, weights=self.settings.weights, boxes=self.settings.boxes)
            path = self.settings.out / "stores" / f"{spec.mode}-{features[:12]}.zarr"
            logger.info("no store given for %s: stage one makes %s", model.name, path)
            make_store(
                self.settings.tables, path, spec, images_root=self.settings.images_root, split=self.split
            )
            self.by_features[features] = RegionStore.open(path)
        return self.by_features[features]

    def _of_converted(self, model: TrainedModel) -> RegionStore:
        """The one given store whose features have the model's size: which they are, only its user knows."""
        size = model.info["feature_dim"]
        fitting = [store for store in self.by_features.values() if store.metadata.feature_dim == size]
        if len(fitting) != 1:
            raise UsageError(
                f"{model.name} was converted and does not say which features it reads, only that they have {size} "
                f"numbers; {len(fitting)} of the given stores have such: name one store of its detector with --store"
            )
        return fitting[0]


def _score_detector(model: TrainedModel, settings: EvaluationSettings, split: str) -> dict[str, float] | None:
    if not has_table(settings.tables, "objects"):
        logger.warning("%s: not scored, %s has no objects table", model.name, settings.tables)
        return None
    from stage1_detect.detection_metrics import evaluate_detector
    from stage1_detect.detector import load_detector

    return evaluate_detector(
        load_detector(model.model_dir), settings.tables, images_root=settings.images_root, split=split
    )


def _score_captioner(
    model: TrainedModel, settings: EvaluationSettings, split: str, store: RegionStore, done: Evaluated
) -> None:
    from stage2_models.caption_inference import load_captioner, sample_captions

    loaded = load_captioner(model.model_dir)
    result = loaded.evaluate(
        settings.tables, store, split, decoding=loaded.decoding(beam_size=settings.beam_size)
    )
    role = _free_role(model, done.captions)
    done.captions[role] = (model, result, store)
    if knows_objects(settings.tables):
        samples = sample_captions(loaded, store, list(result.captions), SAMPLES_EACH)
        done.sampled[role] = truth_of_statements(samples, settings.tables)


def _score_vqa(
    model: TrainedModel, tables: Path, split: str, store: RegionStore | None, done: Evaluated
) -> None:
    from stage2_models.vqa_inference import load_vqa

    result = load_vqa(model.model_dir).evaluate(tables, store, split)
    done.answers[_free_role(model, done.answers)] = (model, result, store)


def _free_role(model: TrainedModel, taken: Mapping[str, Any]) -> str:
    """A second model of the same part goes by the name of its run."""
    return model.name if model.role in taken else model.role


def _rename_only_paper(done: Evaluated) -> None:
    """Where the paper's form is the only one on regions, it is what "regions" stands for."""
    if "paper" in done.answers and "regions" not in done.answers:
        done.answers["regions"] = done.answers.pop("paper")


def _report(
    models: Sequence[TrainedModel], done: Evaluated, settings: EvaluationSettings, split: str
) -> dict[str, Any]:
    from pipeline.training.runs import software_versions

    images = read_table(settings.tables, "images")
    report: dict[str, Any] = {
        "title": "Bottom-up / top-down: report",
        "data": {
            "name": settings.tables.name,
            "split": split,
            "images": int((images["split"] == split).sum()),
        },
    }
    if done.detector is not None:
        report["detector"] = done.detector
    if done.captions:
        report["caption"] = {role: _caption_scores(done, role, settings) for role in done.captions}
    if done.answers:
        report["vqa"] = _vqa_scores(done, settings.tables)
    report["baselines"] = _baselines(models, done, settings, split)
    if "regions" in done.captions and has_table(settings.tables, "objects"):
        report["attention"] = _attention(done, settings)
    stores = [store for *_, store in (*done.captions.values(), *done.answers.values()) if store is not None]
    regions = next(
        (store for store in stores if store.metadata.box_source != "grid"), stores[0] if stores else None
    )
    if regions is not None:
        metadata = regions.metadata
        report["k"] = (
            metadata.max_regions if not metadata.adaptive else [metadata.min_regions, metadata.max_regions]
        )
        report["store"] = {
            "path": str(regions.path),
            "fingerprint": regions.fingerprint,
            "features_fingerprint": regions.features_fingerprint,
            "pictures": len(regions),
            "boxes": metadata.box_source,
            "feature_dim": metadata.feature_dim,
            "detector": metadata.detector["fingerprint"],
        }
    seeds = {model.run_config().get("training", {}).get("seed") for model in models} - {None}
    if len(seeds) == 1:
        report["seed"] = seeds.pop()
    report["versions"] = software_versions()
    return report


def _caption_scores(done: Evaluated, role: str, settings: EvaluationSettings) -> dict[str, Any]:
    model, result, _ = done.captions[role]
    words = {image_id: caption.words for image_id, caption in result.captions.items()}
    scores = {"model": model.title, **result.metrics(), **truth_of_captions(words, settings.tables)}
    if role in done.sampled:
        scores["sampled"] = done.sampled[role]
    return scores | java_scores(settings.java_metrics, words, result.references)


def _vqa_scores(done: Evaluated, tables: Path) -> dict[str, Any]:
    """By role; "consistency" only where the questions come in balanced pairs."""
    from stage2_models.vqa_metrics import pair_consistency

    questions = read_table(tables, "questions").set_index("question_id")
    kept = questions["pair_id"].dropna() if "pair_id" in questions else questions["image_id"].iloc[:0]
    pairs = {str(question_id): str(pair_id) for question_id, pair_id in kept.items()}
    scores: dict[str, Any] = {}
    for role, (model, result, _) in done.answers.items():
        scores[role] = {
            "model": model.title,
            "accuracy": result.scores.accuracy,
            "by_type": result.scores.by_question_type,
            "by_answer_type": result.scores.by_answer_type,
        }
        consistency = pair_consistency(result.scores.per_question, pairs)
        if consistency is not None:
            scores[role]["consistency"] = consistency
    return scores


def _attention(done: Evaluated, settings: EvaluationSettings) -> dict[str, float]:
    from stage2_models.grounding import pointing

    _, result, store = done.captions["regions"]
    boxes = {image_id: store.image(image_id).boxes for image_id in result.captions}
    scores = pointing(result.captions, boxes, read_table(settings.tables, "objects"))
    return {"pointing_accuracy": scores.accuracy, "chance": scores.chance, "nouns": scores.num_words}


def _baselines(
    models: Sequence[TrainedModel], done: Evaluated, settings: EvaluationSettings, split: str
) -> dict[str, Any]:
    baselines: dict[str, Any] = {}
    if done.captions:
        _, result, store = next(iter(done.captions.values()))
        baselines |= caption_baselines(list(result.captions), models, settings.tables, split, store)
    if done.answers:
        _, answered, _ = next(iter(done.answers.values()))
        baselines |= answer_baseline(answered.predictions.keys(), models, settings.tables, split)
    return baselines


def _write_predictions(done: Evaluated, tables: Path, out: Path) -> None:
    """Every caption and answer, in the form of COCO's and VQA's result files."""
    folder = out / "predictions"
    folder.mkdir(exist_ok=True)
    for role, (_, captions, _) in done.captions.items():
        texts = {image_id: caption.text for image_id, caption in captions.captions.items()}
        write_json(folder / f"captions-{role}.json", name_as_published(texts, tables))
    for role, (_, answers, _) in done.answers.items():
        write_json(folder / f"answers-{role}.json", vqa_results(answers.predictions))


def _without_nan(content: Any) -> Any:  # noqa: ANN401
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and pd.isna(content) else content
