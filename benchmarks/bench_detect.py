"""Stage one against the plain loop that most people write: the whole job, and the choice of regions alone.

The plain loop reads a picture, transforms it, runs the network, suppresses class by class, picks the regions and
writes one .npz a picture: same weights, same pictures, torch's own threads, BatchNorm as it comes, in PyTorch's usual
layout. The job is `detect_to_store` on threads, one block each. The two take turns; ratios are of medians.

Weights are random where none are named (`--weights`): the network's time does not depend on them, the choice's does,
so the class layer is scaled until probabilities spread as a trained detector's.

    python -m benchmarks.bench_detect --pictures runs/scenes --weights runs/detector
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.ops import batched_nms, nms

from benchmarks.record import write_result
from pipeline.scenes.generate import generate_scenes
from stage1_detect.config import DetectorConfig, SelectionConfig
from stage1_detect.detector import Detector
from stage1_detect.jobs import JobConfig, detect_to_store
from stage1_detect.select import select_regions
from stage1_detect.sources import ImageSource, find_images
from stage1_detect.spec import ExtractorSpec
from store_schema.artifacts import find_model_dir, read_model_json

SCORE_THRESH, NMS_THRESH = 0.2, 0.3


def save_random_detector(folder: Path, config: DetectorConfig, objects: int, attributes: int) -> Path:
    """A model folder with random weights; class logits of standard deviation 2.5 on noise."""
    torch.manual_seed(0)
    detector = Detector(config, num_objects=objects, num_attributes=attributes).eval()
    pixels = np.random.default_rng(0).integers(
        0, 256, (config.short_side, config.short_side, 3), dtype=np.uint8
    )
    with torch.inference_mode():
        batch = detector.prepare([pixels])
        feature_map = detector.feature_map(batch)
        logits = detector.regions(
            feature_map, batch, [detector.propose(feature_map, batch)[0][:20]]
        ).class_logits
    with torch.no_grad():
        detector.head.classes.weight.mul_(2.5 / logits.std())
    folder.mkdir(parents=True)
    save_file(detector.state_dict(), folder / "model.safetensors")
    described = {
        "task": "detector",
        "config": config.to_dict(),
        "object_names": [f"object {n}" for n in range(objects)],
        "attribute_names": [f"attribute {n}" for n in range(attributes)],
    }
    (folder / "model.json").write_text(json.dumps(described))
    return folder


class PlainLoop:
    """One picture after the other, as a script on the published recipe does it."""

    def __init__(self, weights: str, regions: int) -> None:
        folder = find_model_dir(Path(weights))
        described = read_model_json(folder)
        self.detector = Detector(
            DetectorConfig.from_dict(described["config"]),
            num_objects=len(described["object_names"]),
            num_attributes=len(described["attribute_names"]),
        )
        self.detector.load_state_dict(load_file(folder / "model.safetensors"))
        self.detector.eval()
        self.regions = regions

    @torch.no_grad()
    def run(self, sources: list[ImageSource], out: Path) -> None:
        """All pictures, into one .npz each."""
        for source in sources:
            with Image.open(source.path) as opened:
                image = np.array(opened.convert("RGB"))
            batch = self.detector.prepare([image])
            feature_map = self.detector.feature_map(batch).contiguous()
            proposals = self.detector.propose(feature_map, batch)
            output = self.detector.regions(feature_map, batch, proposals)
            probs = output.class_logits.softmax(1)
            keep = plain_selection(proposals[0], probs, self.regions)
            object_ids = probs[keep, 1:].argmax(1)
            attributes = self.detector.attribute_logits(output.features[keep], object_ids + 1).softmax(1)
            np.savez(
                out / f"{source.path.stem}.npz",
                features=output.features[keep].numpy(),
                boxes=self.detector.to_original(proposals[0][keep], batch, 0).numpy(),
                objects=object_ids.numpy(),
                attributes=attributes.argmax(1).numpy(),
            )


def plain_selection(boxes: Tensor, probs: Tensor, regions: int) -> Tensor:
    """The published `generate_tsv.py`: NMS of all boxes in every class, best surviving score, the best `regions`."""
    best = torch.zeros(len(boxes))
    for class_id in range(1, probs.shape[1]):
        scores = probs[:, class_id]
        keep = nms(boxes, scores, NMS_THRESH)
        best[keep] = torch.maximum(best[keep], scores[keep])
    return best.argsort(descending=True)[:regions]


def torchvision_selection(boxes: Tensor, probs: Tensor, regions: int) -> Tensor:
    """torchvision's own post-processing: pairs above the threshold, one `batched_nms`; finds nothing below it."""
    region, class_id = (probs[:, 1:] > SCORE_THRESH).nonzero(as_tuple=True)
    scores = probs[region, class_id + 1]
    kept = region[batched_nms(boxes[region], scores, class_id, NMS_THRESH)]
    return torch.tensor(list(dict.fromkeys(kept.tolist()))[:regions])


def time_jobs(
    sources: list[ImageSource], weights: str, *, regions: int, rounds: int, workers: int
) -> dict[str, Any]:
    """Seconds of the plain loop and of our job, in turn, after a turn each on a few pictures to warm up."""
    spec = ExtractorSpec(weights=weights, selection=SelectionConfig(min_regions=regions, max_regions=regions))
    block_size = min(256, -(-len(sources) // workers))
    config = JobConfig(scheduler="threads", num_workers=workers, block_size=block_size)
    loop = PlainLoop(weights, regions)
    seconds: dict[str, list[float]] = {"plain loop": [], "butd detect": []}
    for turn in range(rounds + 1):
        pictures = sources if turn else sources[:2]
        folder = Path(tempfile.mkdtemp())
        jobs: dict[str, Callable[[], object]] = {
            "plain loop": lambda pictures=pictures, folder=folder: loop.run(pictures, folder),
            "butd detect": lambda pictures=pictures, folder=folder: detect_to_store(
                pictures, folder / "store", spec, config
            ),
        }
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if turn:
                seconds[name].append(time.perf_counter() - start)
        shutil.rmtree(folder)
    return {"pictures": len(sources), "block_size": block_size, "workers": workers, "seconds": seconds}


def selection_case(*, classes: int, boxes: int, peaks: float, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes around 40 objects and class probabilities: noise, and on the object's class a peak of up to `peaks`."""
    rng = torch.Generator().manual_seed(seed)
    objects = torch.randint(0, 40, (boxes,), generator=rng)
    centres = torch.rand(40, 2, generator=rng) * 600
    sizes = 40 + torch.rand(40, 2, generator=rng) * 200
    middle = centres[objects] + torch.randn(boxes, 2, generator=rng) * 12
    half = sizes[objects] * (1 + torch.randn(boxes, 2, generator=rng) * 0.1) / 2
    logits = torch.randn(boxes, classes + 1, generator=rng)
    names = torch.randint(1, classes + 1, (40,), generator=rng)
    logits[torch.arange(boxes), names[objects]] += torch.rand(boxes, generator=rng) * peaks
    return torch.cat([middle - half, middle + half], 1), logits.softmax(1)


def time_selection(*, peaks: float, regions: int, rounds: int, seed: int = 0) -> dict[str, Any]:
    """Milliseconds of the three ways to choose, in turn; ours must choose what the plain loop chooses."""
    boxes, probs = selection_case(classes=1600, boxes=300, peaks=peaks, seed=seed)
    config = SelectionConfig(
        min_regions=regions, max_regions=regions, score_thresh=SCORE_THRESH, nms_thresh=NMS_THRESH
    )
    ways: dict[str, Callable[[], Tensor]] = {
        "NMS class by class": lambda: plain_selection(boxes, probs, regions),
        "ours": lambda: select_regions(boxes, probs, config),
        "torchvision, above the threshold": lambda: torchvision_selection(boxes, probs, regions),
    }
    chosen = {name: way().tolist() for name, way in ways.items()}
    if chosen["ours"] != chosen["NMS class by class"]:
        raise SystemExit("the two choices differ: not measured")
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name, way in ways.items():
            repeats = 1 if name == "NMS class by class" else 20
            start = time.perf_counter()
            for _ in range(repeats):
                way()
            if turn:
                times[name].append((time.perf_counter() - start) / repeats * 1e3)
    above = int((probs[:, 1:].max(1).values >= SCORE_THRESH).sum())
    found = len(chosen["torchvision, above the threshold"])
    return {"regions": regions, "boxes_above": above, "found_above": found, "milliseconds": times}


def main() -> None:
    """Measure, print a table, write benchmarks/results/detect.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pictures", type=Path, help="folder for the small detector; scenes are drawn if not given"
    )
    parser.add_argument("--weights", help="a trained small detector; random weights if not given")
    parser.add_argument("--number", type=int, default=600)
    parser.add_argument("--photographs", type=Path, help="folder for ResNet-101; the pictures if not given")
    parser.add_argument("--number-photographs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=["small", "resnet101", "selection"])
    options = parser.parse_args()
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        pictures = options.pictures or Path(scratch, "scenes")
        if options.pictures is None:
            generate_scenes(pictures, num_images=options.number, seed=1, progress=False)
        sources = find_images(pictures)[: options.number]
        photographs = find_images(options.photographs or pictures)[: options.number_photographs]
        if options.only in (None, "small"):
            small = options.weights or str(
                save_random_detector(Path(scratch, "small"), DetectorConfig(), 14, 10)
            )
            runs["small"] = time_jobs(
                sources, small, regions=12, rounds=options.rounds, workers=options.workers
            )
        if options.only in (None, "resnet101"):
            config = DetectorConfig.resnet_c4("resnet101")
            large = str(save_random_detector(Path(scratch, "resnet101"), config, 1600, 400))
            rounds = min(2, options.rounds)
            runs["resnet101"] = time_jobs(
                photographs, large, regions=36, rounds=rounds, workers=options.workers
            )
    if options.only in (None, "selection"):
        runs["selection"] = time_selection(peaks=14, regions=36, rounds=options.rounds + 1)
        runs["selection, filled up"] = time_selection(peaks=7, regions=36, rounds=options.rounds + 1)
    ratios = _report(runs)
    path = write_result("detect", {"ratios": ratios, "runs": runs}, ["torch", "torchvision", "dask"])
    print(f"written: {path}")


def _report(runs: dict[str, Any]) -> dict[str, float]:
    """Print each row; return ours to the others."""
    ratios: dict[str, float] = {}
    for name, run in runs.items():
        unit = "seconds" if "seconds" in run else "milliseconds"
        medians = {way: median(values) for way, values in run[unit].items()}
        ours = medians["butd detect" if unit == "seconds" else "ours"]
        facts = {key: value for key, value in run.items() if key != unit}
        print(f"{name} {facts}")
        for way, value in medians.items():
            ratios[f"{name}: {way}"] = value / ours
            print(f"  {way:<34} {value:10.3f} {unit}   {value / ours:8.2f} times ours")
    return ratios


if __name__ == "__main__":
    main()
