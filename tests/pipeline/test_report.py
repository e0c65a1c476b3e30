"""The report stands on report.json alone, escapes what data sets bring, and names what is missing."""

import json
from pathlib import Path

import pytest
from PIL import Image

from pipeline.report import write_report
from store_schema.errors import InputNotFoundError, UsageError

SCORES = {
    "title": "A <b>run</b>",
    "data": {"images": 1200, "name": "scenes", "split": "test"},
    "detector": {"map_50": 0.97, "map": 0.81, "attribute_accuracy": 0.98, "recall": 0.99},
    "caption": {
        "regions": {"model": "two LSTMs", "bleu_4": 0.5, "rouge_l": 0.6, "cider_d": 2.1, "true_pairs": 0.94},
        "grid": {"model": "two LSTMs", "bleu_4": 0.4, "rouge_l": 0.5, "cider_d": 1.7, "true_pairs": 0.81},
    },
    "vqa": {
        "regions": {"model": "binding", "accuracy": 0.81, "by_type": {"count": 0.7, "color": 0.9}},
        "paper": {"model": "paper's form", "accuracy": 0.5, "by_type": {"count": 0.4, "color": 0.6}},
        "question_only": {
            "model": "question only",
            "accuracy": 0.35,
            "by_type": {"count": 0.3, "color": 0.4},
        },
    },
    "baselines": {
        "most_common_caption": {"cider_d": 0.2},
        "most_common_answer": {"accuracy": 0.2, "by_type": {}},
    },
    "attention": {"pointing_accuracy": 0.8, "chance": 0.4},
    "seconds": {"scenes": 12.0, "detector": 70.0, "total": 90.0},
    "versions": {"torch": "2.15"},
    "store": {"fingerprint": "abc"},
    "seed": 1,
    "k": 12,
}


def folder_with_scores(folder: Path) -> Path:
    (folder / "examples").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "examples" / "one.png")
    example = {
        "picture": "examples/one.png",
        "alt": "a picture",
        "lines": [{"head": "said", "text": "<script>alert(1)</script>"}],
    }
    (folder / "report.json").write_text(json.dumps(SCORES))
    (folder / "examples.json").write_text(json.dumps({"captions": [example]}))
    return folder


def test_both_reports_hold_every_score_beside_its_baseline(tmp_path: Path) -> None:
    markdown, html = write_report(folder_with_scores(tmp_path))
    for text in (markdown.read_text(), html.read_text()):
        for value in (
            "0.970",
            "2.100",
            "1.700",
            "0.810",
            "0.350",
            "0.200",
            "80.0%",
            "40.0%",
            "12 s",
        ):
            assert value in text
        assert "90 s" in text
        assert "question only" in text


def test_relations_and_numbers_stand_beside_their_chance_for_samples_too(tmp_path: Path) -> None:
    stated = {
        "true_relations": 0.75, "true_relations_chance": 0.5, "stated_relations": 1234,
        "true_numbers": None, "true_numbers_chance": None, "stated_numbers": 0,
    }  # fmt: skip
    captions = {"regions": SCORES["caption"]["regions"] | {"sampled": stated}}  # type: ignore[index]
    (tmp_path / "report.json").write_text(json.dumps(SCORES | {"caption": captions}))
    markdown, _ = write_report(tmp_path)
    (row,) = [line for line in markdown.read_text().splitlines() if "sampled" in line]
    cells = [cell.strip(" *") for cell in row.strip("|").split("|")]
    assert cells[1:] == ["0.750", "0.500", "1,234", "–", "–", "0"]


def test_the_page_is_self_contained_and_escapes_texts_of_the_data(tmp_path: Path) -> None:
    _, html = write_report(folder_with_scores(tmp_path))
    page = html.read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "A &lt;b&gt;run" in page


def test_what_there_was_nothing_to_judge_for_is_a_dash(tmp_path: Path) -> None:
    """A captioner that says no noun, a split without objects: report.json has null."""
    nothing = {
        "detector": {"map_50": None, "map": None, "attribute_accuracy": None, "recall": None},
        "attention": {"pointing_accuracy": None, "chance": None},
        "caption": {"regions": SCORES["caption"]["regions"] | {"true_pairs": None}},  # type: ignore[index]
    }
    (tmp_path / "report.json").write_text(json.dumps(SCORES | nothing))
    markdown, _ = write_report(tmp_path)
    assert "for – of the nouns" in markdown.read_text()
    assert "None" not in markdown.read_text()


def test_a_folder_without_scores_or_with_broken_ones_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"report\.json expected, it does not exist"):
        write_report(tmp_path)
    (tmp_path / "report.json").write_text('{"detector"')
    with pytest.raises(UsageError, match=r"report\.json: not readable as JSON"):
        write_report(tmp_path)
