"""Stage one against the plain loop that most people write: the whole job, and the choice of regions alone.

The plain loop reads a picture, transforms it, runs the network, suppresses class by class, picks the regions and
writes one .npz a picture: same weights, same pictures, as many threads of torch as the job has cores, BatchNorm as it
comes, in PyTorch's usual layout. The job is `detect_to_store` on threads, one block a core. The two take turns, ratios
are of medians. Beside other work on the machine take `--cores 1`: torch's threads wait for each other, so that a loop
on two of them falls far behind (19 times behind the job, measured so) for no fault of its own. The processor's seconds
are counted as well: they tell more than the clock's where others take turns on a core.

Weights are random where none are named (`--weights`): the network's time does not depend on them, the choice's does,
so the class layer is scaled until probabilities spread as a trained detector's.

    python -m benchmarks.bench_detect --pictures runs/scenes --weights runs/detector
"""

import argparse
import json
import os
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
from torchvision.ops import batched_nms, nms, roi_align, roi_pool

from benchmarks.record import RESULTS, write_result
from pipeline.scenes.generate import generate_scenes
from stage1_detect.config import DetectorConfig, SelectionConfig
from stage1_detect.detector import Detector
from stage1_detect.images import decode_image
from stage1_detect.jobs import JobConfig, detect_to_store
from stage1_detect.select import select_regions
from stage1_detect.sources import ImageSource, find_images
from stage1_detect.spec import ExtractorSpec
from store_schema.artifacts import find_model_dir, read_model_json

SCORE_THRESH, NMS_THRESH = 0.2, 0.3
PUBLISHED: dict[str, Any] = {
    "stem_pool": "ceil",
    "stride_in_1x1": True,
    "conv5_dilation": 2,
    "pooler": "roi_pool",
    "pooler_sampling": 0,
}
"""What of the published ResNet-101 C4 costs time: conv5 on 14 x 14 bins, and RoIPool."""


def save_random_detector(
    folder: Path, config: DetectorConfig, objects: int, attributes: int, picture: ImageSource
) -> Path:
    """A model folder with random weights that behave on pictures like this one.

    BatchNorm has its statistics, class logits have a standard deviation of 2.5 on it, and anchors are not moved,
    so that there are as many proposals as there may be.
    """
    torch.manual_seed(0)
    detector = Detector(config, num_objects=objects, num_attributes=attributes)
    pixels = decode_image(picture.read(), picture.name).pixels
    boxes = torch.rand(40, 2) * config.short_side / 2
    boxes = torch.cat([boxes, boxes + config.short_side * torch.rand(40, 2) / 2], 1)
    for layer in detector.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        batch = detector.prepare([pixels])
        for mode in (True, False):
            logits = detector.train(mode).regions(detector.feature_map(batch), batch, [boxes]).class_logits
        detector.head.classes.weight.mul_(2.5 / logits.std())
        detector.rpn.get_parameter("deltas.weight").zero_()
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
            feature_map = self.detector.backbone(batch.images.contiguous())
            proposals = self.detector.propose(feature_map, batch)
            features, logits, _ = self.detector.head(self.pool(feature_map, proposals))
            probs = logits.softmax(1)
            keep = plain_selection(proposals[0], probs, self.regions)
            object_ids = probs[keep, 1:].argmax(1)
            attributes = self.detector.attribute_logits(features[keep], object_ids + 1).softmax(1)
            np.savez(
                out / f"{source.path.stem}.npz",
                features=features[keep].numpy(),
                boxes=self.detector.to_original(proposals[0][keep], batch, 0).numpy(),
                objects=object_ids.numpy(),
                attributes=attributes.argmax(1).numpy(),
            )

    def pool(self, feature_map: Tensor, proposals: list[Tensor]) -> Tensor:
        """torchvision's own pooling, of all regions at once."""
        config, head = self.detector.config, self.detector.head
        region_map, scale = head.region_map(feature_map).contiguous(), 1 / self.detector.backbone.stride
        if config.pooler == "roi_pool":
            pooled: Tensor = roi_pool(region_map, proposals, config.pooler_size, scale)
        else:
            sampling = config.pooler_sampling
            pooled = roi_align(region_map, proposals, config.pooler_size, scale, sampling, aligned=True)
        return pooled


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
    sources: list[ImageSource], weights: str, *, regions: int, rounds: int, cores: int
) -> dict[str, Any]:
    """Seconds of the plain loop and of our job, in turn, after a turn each on one picture to warm up."""
    spec = ExtractorSpec(weights=weights, selection=SelectionConfig(min_regions=regions, max_regions=regions))
    block_size = min(256, -(-len(sources) // cores))
    config = JobConfig(scheduler="threads", num_workers=cores, torch_threads=1, block_size=block_size)
    loop = PlainLoop(weights, regions)
    torch.set_num_threads(cores)
    seconds: dict[str, list[float]] = {"plain loop": [], "butd detect": []}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in seconds}
    for turn in range(rounds + 1):
        pictures = sources if turn else sources[:1]
        folder = Path(tempfile.mkdtemp())
        jobs: dict[str, Callable[[], object]] = {
            "plain loop": lambda pictures=pictures, folder=folder: loop.run(pictures, folder),
            "butd detect": lambda pictures=pictures, folder=folder: detect_to_store(
                pictures, folder / "store", spec, config
            ),
        }
        for name, job in jobs.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            job()
            if turn:
                seconds[name].append(time.perf_counter() - start)
                cpu_seconds[name].append(time.process_time() - cpu_start)
        shutil.rmtree(folder)
    facts = {"pictures": len(sources), "block_size": block_size, "cores": cores}
    return {**facts, "seconds": seconds, "cpu_seconds": cpu_seconds}


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
    parser.add_argument(
        "--cores", type=int, default=len(os.sched_getaffinity(0)), help="that both may use (default: all)"
    )
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
                save_random_detector(Path(scratch, "small"), DetectorConfig(), 14, 10, sources[0])
            )
            runs["small"] = time_jobs(sources, small, regions=12, rounds=options.rounds, cores=options.cores)
        if options.only in (None, "resnet101"):
            config = DetectorConfig.resnet_c4("resnet101", **PUBLISHED)
            large = str(save_random_detector(Path(scratch, "resnet101"), config, 1600, 400, photographs[0]))
            rounds = min(2, options.rounds)
            runs["resnet101"] = time_jobs(photographs, large, regions=36, rounds=rounds, cores=options.cores)
    if options.only in (None, "selection"):
        runs["selection"] = time_selection(peaks=14, regions=36, rounds=options.rounds + 1)
        runs["selection, filled up"] = time_selection(peaks=7, regions=36, rounds=options.rounds + 1)
    if options.only is not None:  # the others stay as they were measured
        runs = {**_measured_before(), **runs}
    ratios = _report(runs)
    path = write_result("detect", {"ratios": ratios, "runs": runs}, ["torch", "torchvision", "dask"])
    print(f"written: {path}")


def _measured_before() -> dict[str, Any]:
    file = RESULTS / "detect.json"
    runs: dict[str, Any] = json.loads(file.read_text())["runs"] if file.is_file() else {}
    return runs


_UNITS = ("seconds", "cpu_seconds", "milliseconds")


def _report(runs: dict[str, Any]) -> dict[str, float]:
    """Print each row; return ours to the others."""
    ratios: dict[str, float] = {}
    for name, run in runs.items():
        print(f"{name} { {key: value for key, value in run.items() if key not in _UNITS} }")
        for unit in _UNITS:
            medians = {way: median(values) for way, values in run.get(unit, {}).items()}
            ours = medians.get("ours", medians.get("butd detect", 1.0))
            for way, value in medians.items():
                ratios[f"{name}: {way}{', processor' if unit == 'cpu_seconds' else ''}"] = value / ours
                print(f"  {way:<34} {value:10.3f} {unit:<12}   {value / ours:8.2f} times ours")
    return ratios


if __name__ == "__main__":
    main()
