"""The demonstration end to end, minuscule: every key of the report, a self-contained page, nothing done twice."""

import json
import re
from pathlib import Path

import pytest

from pipeline.demo import SETTINGS, DemoSetting, run_demo
from pipeline.sequence import StepFailedError

MINUSCULE = DemoSetting(
    images=40, heldout=12, regions=6, detector_steps=8, caption_epochs=1, vqa_epochs=1, question_only_epochs=1
)
STEPS = (
    "scenes", "heldout scenes", "detector", "regions", "grid", "heldout regions", "heldout grid", "caption-regions",
    "caption-grid", "vqa-regions", "vqa-grid", "vqa-regions-paper", "vqa-question-only", "evaluate",
)  # fmt: skip


def test_the_small_setting_is_the_same_path_with_less_of_everything() -> None:
    full, small = SETTINGS["full"], SETTINGS["small"]
    assert small.regions == full.regions
    for name in ("images", "heldout", "detector_steps", "caption_epochs", "vqa_epochs"):
        assert 0 < getattr(small, name) < getattr(full, name)


@pytest.mark.slow
@pytest.mark.timeout(2400)  # fourteen commands: a minute, but many times that beside other work
def test_a_minuscule_demo_leaves_the_whole_report_and_does_nothing_twice(tmp_path: Path) -> None:
    said: list[str] = []
    page = run_demo(tmp_path, MINUSCULE, seed=3, say=said.append)

    report = json.loads((tmp_path / "report.json").read_text())
    assert {"map_50", "map", "attribute_accuracy"} <= report["detector"].keys()
    for role in ("regions", "grid"):
        wanted = {"model", "bleu_4", "rouge_l", "cider_d", "true_pairs"}
        assert wanted <= report["caption"][role].keys()
    for role in ("regions", "grid", "question_only", "paper"):
        assert {"model", "accuracy", "by_type"} <= report["vqa"][role].keys()
    assert {"most_common_caption", "most_common_answer"} <= report["baselines"].keys()
    assert {"pointing_accuracy", "chance"} <= report["attention"].keys()
    assert set(report["seconds"]) == {*STEPS, "total"}
    assert report["seconds"]["total"] >= max(report["seconds"][name] for name in STEPS)
    assert (report["seed"], report["k"], report["data"]["images"]) == (3, 6, 12)
    assert {"torch", "butd"} <= report["versions"].keys()
    assert report["store"]["pictures"] == 12

    html = page.read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 36
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html) == []
    assert "<script" not in html

    said.clear()
    assert run_demo(tmp_path, MINUSCULE, seed=3, say=said.append) == page
    assert sorted(said) == sorted(f"{name}: done before" for name in STEPS)
    again = json.loads((tmp_path / "report.json").read_text())
    totals = [scores["seconds"].pop("total") for scores in (report, again)]
    assert again == report
    assert totals[1] == pytest.approx(totals[0], abs=5)

    # Another size in the same folder is not taken for the one that is there.
    larger = DemoSetting(**{**vars(MINUSCULE), "images": 41})
    with pytest.raises(
        StepFailedError, match="scenes of other parameters: num_images is 40 there and 41 here"
    ):
        run_demo(tmp_path, larger, seed=3, say=said.append)
