"""A tiny detector with random weights, and a folder of small pictures."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stage1_detect.config import DetectorConfig
from stage1_detect.detector import Detector
from store_schema.tables import write_table

OBJECTS = ("ball", "box", "cone")
ATTRIBUTES = ("red", "striped")
COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
SHAPES = {"square": (24, 24), "bar": (40, 16)}


def tiny_config() -> DetectorConfig:
    return DetectorConfig(
        widths=(4, 8, 8, 12),
        short_side=64,
        long_side=128,
        anchor_sizes=(16.0, 32.0),
        rpn_channels=8,
        rpn_post_nms_test=20,
        region_channels=4,
        hidden_dim=24,
        class_embedding_dim=4,
        attribute_hidden_dim=8,
    )


def save_detector(folder: Path, seed: int) -> Path:
    """A model folder as the trainer leaves it, with weights that differ enough for clear scores."""
    torch.manual_seed(seed)
    detector = Detector(tiny_config(), num_objects=len(OBJECTS), num_attributes=len(ATTRIBUTES))
    for name, std in (
        ("head.classes", 0.5),
        ("rpn.objectness", 0.5),
        ("rpn.deltas", 0.5),
        ("head.boxes", 0.2),
    ):
        torch.nn.init.normal_(detector.get_parameter(f"{name}.weight"), std=std)
    folder.mkdir(parents=True)
    save_file(detector.state_dict(), folder / "model.safetensors")
    described = {
        "task": "detector",
        "config": detector.config.to_dict(),
        "object_names": OBJECTS,
        "attribute_names": ATTRIBUTES,
    }
    (folder / "model.json").write_text(json.dumps(described))
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Threads cost more than they give on tiny networks, most of all beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def detector_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_detector(tmp_path_factory.mktemp("detector") / "model", seed=0)


@pytest.fixture(scope="session")
def other_detector_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_detector(tmp_path_factory.mktemp("detector") / "model", seed=1)


@pytest.fixture(scope="session")
def draw_pictures() -> Callable[..., list[Path]]:
    """Write so many pictures of coloured patches into a folder, sizes in turn."""

    def draw(folder: Path, number: int, sizes: tuple[tuple[int, int], ...] = ((64, 64),)) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        paths = []
        for index in range(number):
            patches = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            path = folder / f"{index:03d}.png"
            Image.fromarray(patches).resize(sizes[index % len(sizes)], Image.Resampling.NEAREST).save(path)
            paths.append(path)
        return paths

    return draw


@pytest.fixture(scope="session")
def detection_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coloured squares and bars on noise with their tables: 24 training, 8 validation, 5 test pictures of 64
    pixels. Shared: do not write into the folder."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    images, objects, attributes = [], [], []
    for coco_id, (split, index) in enumerate(
        [("train", i) for i in range(24)] + [("val", i) for i in range(8)] + [("test", i) for i in range(5)]
    ):
        image_id = f"{split}-{index}"
        path = f"images/{image_id}.png"
        pixels = rng.integers(100, 156, (64, 64, 3), dtype=np.uint8)
        row = {"image_id": image_id, "path": path, "width": 64, "height": 64, "split": split}
        images.append(row | {"coco_id": coco_id})
        for place in range(int(rng.integers(1, 3))):
            shape, color = str(rng.choice(list(SHAPES))), str(rng.choice(list(COLORS)))
            width, height = SHAPES[shape]
            x = int(rng.integers(0, 64 - width))
            y = int(rng.integers(0, 32 - height)) + 32 * place
            pixels[y : y + height, x : x + width] = COLORS[color]
            object_id = f"{image_id}:{place}"
            box = {"x1": x, "y1": y, "x2": x + width, "y2": y + height}
            objects.append(
                {"image_id": image_id, "object_id": object_id, **box, "object": shape, "crowd": False}
            )
            attributes.append({"object_id": object_id, "attribute": color})
            if place:
                attributes.append({"object_id": object_id, "attribute": "low"})
        Image.fromarray(pixels).save(folder / path)
    write_table(folder, "images", images)
    write_table(folder, "objects", objects)
    write_table(folder, "object_attributes", attributes)
    return folder
