"""Caption scores against the official tool's, and the rules on what may be scored."""

import json
from pathlib import Path

import pytest

from stage2_models.caption_metrics import most_common_caption, score_captions, score_texts
from store_schema.errors import UsageError

OFFICIAL = Path(__file__).resolve().parents[3] / "shared/data/caption_eval"
NAMES = {
    "bleu_1": "Bleu_1", "bleu_2": "Bleu_2", "bleu_3": "Bleu_3", "bleu_4": "Bleu_4",
    "rouge_l": "ROUGE_L", "cider_d": "CIDEr",
}  # fmt: skip


@pytest.mark.parametrize("name", ["coco_human_loo", "fakecap_val2014", "flickr8k_human_loo"])
def test_scores_equal_the_official_ones_to_the_last_printed_digit(name: str) -> None:
    if not OFFICIAL.is_dir():
        pytest.skip("../shared/data/caption_eval is not here")
    results = json.loads((OFFICIAL / f"{name}_results.json").read_text())
    truth = json.loads((OFFICIAL / f"{name}_references.json").read_text())["annotations"]
    official = json.loads((OFFICIAL / f"{name}_scores.json").read_text())
    references: dict[str, list[str]] = {}
    for annotation in truth:
        references.setdefault(str(annotation["image_id"]), []).append(annotation["caption"])
    scores = score_texts({str(item["image_id"]): item["caption"] for item in results}, references)
    assert {NAMES[key]: value for key, value in scores.overall.items()} == {
        key: value for key, value in official["overall"].items() if key != "METEOR"
    }
    for image_id, expected in official["per_image"].items():
        assert all(scores.per_image[image_id][ours] == expected[theirs] for ours, theirs in NAMES.items())


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    score_texts({"1": "a red ball", "2": "a cup"}, {"1": ["a red ball"], "2": ["a blue cup"]})
    assert capsys.readouterr().out == ""


def test_an_empty_caption_scores_zero() -> None:
    scores = score_texts({"1": "", "2": "a blue cup"}, {"1": ["a red ball"], "2": ["a blue cup"]})
    assert scores.per_image["1"]["cider_d"] == 0.0
    assert scores.per_image["1"]["rouge_l"] == 0.0


def test_pictures_on_one_side_only_are_refused() -> None:
    with pytest.raises(UsageError, match="1 stand on one side only, such as '2'"):
        score_texts({"1": "a"}, {"1": ["a"], "2": ["b"]})
    with pytest.raises(UsageError, match="picture '1' has no reference"):
        score_captions({"1": ["a"]}, {"1": []})
    with pytest.raises(UsageError, match="none came"):
        score_captions({}, {})


def test_most_common_caption_is_the_first_of_the_most_frequent() -> None:
    assert most_common_caption([["b"], ["a"], ["c"], ["a"], ["b"]]) == ("b",)
