from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stage1_detect.annotations import ImageObjects, read_annotations
from stage1_detect.config import DetectorConfig
from stage1_detect.detection_metrics import (
    attribute_scores,
    average_precision,
    coco_average_precision,
    evaluate,
)
from stage1_detect.detector import Detections, Detector
from stage1_detect.pictures import PictureSource
from store_schema.errors import UsageError
from store_schema.tables import read_table, write_table

CONFIG = DetectorConfig(widths=(4, 8, 8, 16), short_side=64, long_side=64, region_channels=8, hidden_dim=24)


def truth(*boxes: list[float], ids: list[int], crowd: list[bool] | None = None) -> ImageObjects:
    return ImageObjects(
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(ids, dtype=np.int64),
        np.array(crowd or [False] * len(ids)),
        np.zeros((len(ids), 0), dtype=bool),
    )


def found(*boxes: list[float], ids: list[int], scores: list[float]) -> Detections:
    places = torch.arange(len(ids))
    return Detections(torch.tensor(boxes).reshape(-1, 4), torch.tensor(ids), torch.tensor(scores), places)


BOX, OTHER = [10.0, 10, 30, 30], [40.0, 40, 60, 60]


def test_perfect_detections_score_one() -> None:
    scores = coco_average_precision({0: truth(BOX, ids=[1])}, {0: found(BOX, ids=[1], scores=[0.9])}, 3)
    assert scores == pytest.approx({"map_50": 1.0, "map_50_weighted": 1.0, "map": 1.0})


def test_a_box_of_overlap_two_thirds_counts_up_to_its_overlap() -> None:
    """20x20 against 20x16.. : IoU .8 passes .5 to .8, that is 7 of 10 thresholds."""
    scores = coco_average_precision(
        {0: truth(BOX, ids=[0])}, {0: found([10.0, 10, 30, 26.1], ids=[0], scores=[0.9])}, 1
    )
    assert scores == pytest.approx({"map_50": 1.0, "map_50_weighted": 1.0, "map": 0.7})


def test_a_class_that_is_never_found_halves_the_mean() -> None:
    scores = coco_average_precision(
        {0: truth(BOX, OTHER, ids=[0, 2])}, {0: found(BOX, ids=[0], scores=[0.9])}, 3
    )
    assert scores["map_50"] == pytest.approx(0.5)


def test_detections_in_a_crowd_are_not_wrong() -> None:
    objects = truth(BOX, OTHER, ids=[0, 0], crowd=[False, True])
    detections = found([41.0, 41, 59, 59], BOX, ids=[0, 0], scores=[0.9, 0.8])
    assert coco_average_precision({0: objects}, {0: detections}, 1)["map"] == pytest.approx(1.0)


def test_no_detection_at_all_scores_zero() -> None:
    scores = coco_average_precision({0: truth(BOX, ids=[0])}, {0: found(ids=[], scores=[])}, 1)
    assert scores == {"map_50": 0.0, "map_50_weighted": 0.0, "map": 0.0}


def test_weighted_precision_counts_each_class_as_often_as_it_occurs() -> None:
    boxes = [[10.0 * n, 10.0, 10.0 * n + 9, 30.0] for n in range(4)]
    objects = truth(*boxes, ids=[0, 0, 0, 2], crowd=[False, False, False, False])
    detections = found(*boxes[:3], ids=[0, 0, 0], scores=[0.9, 0.8, 0.7])
    scores = coco_average_precision({0: objects}, {0: detections}, 3)
    assert scores["map_50"] == pytest.approx(1 / 2)
    assert scores["map_50_weighted"] == pytest.approx(3 / 4)


def test_crowds_have_no_weight() -> None:
    objects = truth(BOX, OTHER, BOX, ids=[0, 1, 1], crowd=[False, False, True])
    detections = found(BOX, ids=[0], scores=[0.9])
    assert coco_average_precision({0: objects}, {0: detections}, 2)["map_50_weighted"] == pytest.approx(0.5)


def voc_area(scores: NDArray[np.float32], right: NDArray[np.bool_]) -> float:
    """Each recall step times the best precision at this recall or a higher one, in plain loops."""
    points = []
    for score in sorted(set(scores.tolist()), reverse=True):
        taken = scores >= score
        points.append((right[taken].sum() / right.sum(), right[taken].mean()))
    area, before = 0.0, 0.0
    for place, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[place:])
        before = recall
    return float(area)


def test_average_precision_is_vocs_area_whatever_the_order_of_equal_scores() -> None:
    rng = np.random.default_rng(0)
    for n in [1, 2, 5, 30] * 10:
        scores = rng.integers(0, 6, n).astype(np.float32)
        right = rng.random(n) < 0.4
        right[0] = True
        assert average_precision(scores, right) == pytest.approx(voc_area(scores, right))
        order = rng.permutation(n)
        assert average_precision(scores[order], right[order]) == pytest.approx(
            average_precision(scores, right)
        )


def test_attributes_by_hand() -> None:
    """Attribute 0 of 2 boxes, ranked 1st and 3rd: 1/2 + 1/2 * 2/3; attribute 1 of one box, first; 2 is unknown."""
    probs = np.array([[0.9, 0.1], [0.5, 0.8], [0.3, 0.2]], dtype=np.float32)
    owned = np.array([[1, 0, 0], [0, 1, 1], [1, 0, 0]], dtype=bool)
    scores = attribute_scores(probs, owned)
    assert scores["attribute_accuracy"] == pytest.approx(1)
    assert scores["attribute_map"] == pytest.approx((5 / 6 + 1 + 0) / 3)
    assert scores["attribute_map_weighted"] == pytest.approx((2 * 5 / 6 + 1 + 0) / 4)
    assert attribute_scores(probs, np.zeros_like(owned)) == {}


def score(tables: Path, detector: Detector, **changes: int) -> dict[str, float]:
    images = read_annotations(
        tables, "val", object_names=("bar", "square"), attribute_names=("blue", "low", "red")
    )
    pictures = PictureSource(images.paths, images.sizes, num_workers=1, cache_megabytes=0)
    return evaluate(detector.eval(), images, pictures, **({"max_images": 0, "batch_size": 3} | changes))


def test_scores_do_not_depend_on_the_batch_size(detection_tables: Path) -> None:
    torch.manual_seed(0)
    detector = Detector(CONFIG, num_objects=2, num_attributes=3)
    scores = score(detection_tables, detector)
    assert set(scores) == {
        "map", "map_50", "map_50_weighted", "recall", "recall_36", "attribute_accuracy", "attribute_map",
        "attribute_map_weighted", "num_images", "num_unreadable",
    }  # fmt: skip
    assert 0 < scores["recall_36"] <= scores["recall"] <= 1
    assert scores["num_images"] == 8
    assert scores == score(detection_tables, detector, batch_size=8)
    assert score(detection_tables, detector, max_images=2)["num_images"] == 2


def test_attributes_are_right_where_the_best_is_one_of_the_objects_own(detection_tables: Path) -> None:
    detector = Detector(CONFIG, num_objects=2, num_attributes=3)
    assert detector.head.attributes is not None
    with torch.no_grad():
        detector.head.attributes.logits.weight.zero_()
        detector.head.attributes.logits.bias.copy_(torch.tensor([0.0, 0, 9]))
    pairs = read_table(detection_tables, "object_attributes")
    objects = read_table(detection_tables, "objects")
    val = set(objects["object_id"][objects["image_id"].str.startswith("val")])
    red = set(pairs["object_id"][pairs["attribute"] == "red"]) & val
    assert score(detection_tables, detector)["attribute_accuracy"] == pytest.approx(len(red) / len(val))


def test_unreadable_pictures_are_left_out_and_counted(tmp_path: Path, detection_tables: Path) -> None:
    images = read_table(detection_tables, "images")
    images["path"] = [str(detection_tables / path).lstrip("/") for path in images["path"]]
    images.loc[images["image_id"] == "val-3", "path"] = "nowhere.png"
    write_table(tmp_path, "images", images)
    write_table(tmp_path, "objects", read_table(detection_tables, "objects"))
    annotated = read_annotations(tmp_path, "val", images_root="/")
    pictures = PictureSource(annotated.paths, annotated.sizes, num_workers=0, cache_megabytes=0)
    detector = Detector(CONFIG, num_objects=2).eval()
    scores = evaluate(detector, annotated, pictures, max_images=0, batch_size=8)
    assert (scores["num_images"], scores["num_unreadable"]) == (7, 1)
    assert "attribute_accuracy" not in scores


def test_unknown_objects_count_as_missed(detection_tables: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = read_annotations(detection_tables, "val", object_names=("bar",), attribute_names=())
    assert images.object_names == ("bar", "square")
    truths = {i: images.objects(i) for i in range(len(images))}
    perfect = {}
    for i, objects in truths.items():
        known = objects.object_ids < images.num_known_objects
        perfect[i] = found(
            *objects.boxes[known].tolist(),
            ids=objects.object_ids[known].tolist(),
            scores=[0.9] * int(known.sum()),
        )
    assert coco_average_precision(truths, perfect, 2)["map"] == pytest.approx(0.5)


def test_pictures_without_objects_cannot_be_scored(tmp_path: Path, detection_tables: Path) -> None:
    write_table(tmp_path, "images", read_table(detection_tables, "images"))
    write_table(tmp_path, "objects", [])
    images = read_annotations(tmp_path, "val", images_root=detection_tables)
    pictures = PictureSource(images.paths, images.sizes, num_workers=0, cache_megabytes=0)
    with pytest.raises(UsageError, match="none of the 8 pictures"):
        evaluate(Detector(CONFIG, num_objects=2).eval(), images, pictures, max_images=0, batch_size=8)
