"""The report of evaluated models: report.md and a self-contained report.html from report.json and pictures.

`evaluate` leaves numbers in report.json and drawn examples in examples/ with their texts in examples.json;
everything here is selection of words, tables and pictures. Text from data sets is escaped by the template.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from store_schema.errors import InputNotFoundError, UsageError

MODEL_NAMES = {
    "regions": "regions",
    "grid": "grid of the same backbone",
    "paper": "regions, the paper's form",
    "question_only": "question only, no picture",
}


_CAPTION_COLUMNS = {
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
    "true_pairs": "stated pairs true",
    "true_objects": "objects true",
}


@dataclass
class Table:
    """A table of texts; the first column names the row."""

    columns: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, *cells: str, ours: bool = False) -> None:
        """Add a row; `ours` marks the row that the project stands for."""
        self.rows.append({"cells": list(cells), "ours": ours})


@dataclass
class Section:
    """A heading with what stands under it."""

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[dict[str, Any]] = field(default_factory=list)
    wide: bool = False


def write_report(folder: Path) -> tuple[Path, Path]:
    """Write report.md and report.html beside report.json; returns both paths.

    Errors: `InputNotFoundError` where nothing was evaluated yet, `UsageError` where report.json is no JSON.
    """
    import jinja2

    scores = read_scores(folder)
    examples = read_scores(folder, "examples.json") if (folder / "examples.json").is_file() else {}
    context = {
        "title": scores.get("title", "Bottom-up / top-down: report"),
        "lead": _lead(scores),
        "cards": _cards(scores),
        "sections": _sections(scores, examples, folder),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline", "templates"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
    )
    written = []
    for suffix in ("md", "html"):
        path = folder / f"report.{suffix}"
        partial = path.with_suffix(f".{suffix}.partial")
        partial.write_text(environment.get_template(f"report.{suffix}.j2").render(context), encoding="utf-8")
        partial.replace(path)
        written.append(path)
    return written[0], written[1]


def read_scores(folder: Path, name: str = "report.json") -> dict[str, Any]:
    """What report.json (or another file that `evaluate` wrote) holds. Errors: as `write_report`."""
    return _read_json(folder / name)


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """The scores in a few lines, one for each model and baseline."""
    lines = []
    for part in ("detector", "caption", "vqa", "baselines", "attention"):
        values = report.get(part)
        if not values:
            continue
        nested = {key: value for key, value in values.items() if isinstance(value, dict)}
        for name, scores in (nested or {"": values}).items():
            numbers = (f"{key} {value:.3f}" for key, value in scores.items() if isinstance(value, float))
            lines.append(f"{part} {name}".strip() + ": " + ", ".join(numbers))
    return lines


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputNotFoundError(
            f"{path} expected, it does not exist; run 'butd evaluate' or 'butd demo' first"
        )
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: not readable as JSON ({error}); run 'butd evaluate' again") from error
    return content


def _lead(scores: Mapping[str, Any]) -> str:
    data = scores.get("data", {})
    pictures = f"{data['images']:,} pictures" if "images" in data else "the pictures"
    lead = f"Scores on {pictures} of {data.get('name', 'the evaluation set')}, split {data.get('split', 'all')!r}"
    return lead + ", none of them seen in training. Every figure stands beside its trivial baselines."


def _cards(scores: Mapping[str, Any]) -> list[dict[str, str]]:
    cards = []
    detector = scores.get("detector", {})
    if "map_50" in detector:
        cards.append({"value": _percent(detector["map_50"]), "text": "detector, mAP at IoU .5"})
    caption = scores.get("caption", {}).get("regions", {})
    if "cider_d" in caption:
        grid = scores["caption"].get("grid", {})
        against = f"; grid {grid['cider_d']:.2f}" if "cider_d" in grid else ""
        cards.append({"value": f"{caption['cider_d']:.2f}", "text": f"captions, CIDEr-D{against}"})
    vqa = scores.get("vqa", {})
    if "accuracy" in vqa.get("regions", {}):
        blind = vqa.get("question_only", {})
        against = f"; question only {_percent(blind['accuracy'])}" if "accuracy" in blind else ""
        cards.append({"value": _percent(vqa["regions"]["accuracy"]), "text": f"answers right{against}"})
    attention = scores.get("attention", {})
    if "pointing_accuracy" in attention:
        cards.append(
            {
                "value": _percent(attention["pointing_accuracy"]),
                "text": f"nouns with attention on their object; chance {_percent(attention['chance'])}",
            }
        )
    return cards


def _sections(scores: Mapping[str, Any], examples: Mapping[str, Any], folder: Path) -> list[Section]:
    sections = [
        _detector_section(scores, examples, folder),
        _caption_section(scores, examples, folder),
        _vqa_section(scores, examples, folder),
        _worth_section(scores),
        _seconds_section(scores),
        _origin_section(scores),
    ]
    return [section for section in sections if section is not None]


def _detector_section(scores: Mapping[str, Any], examples: Mapping[str, Any], folder: Path) -> Section | None:
    detector = scores.get("detector", {})
    figures = _figures(examples.get("regions", []), folder)
    if not detector and not figures:
        return None
    section = Section("Bottom-up: the regions", figures=figures)
    if detector:
        table = Table(
            ["", "mAP at IoU .5", "mAP .5 to .95", "attribute right", "objects covered by a region"]
        )
        table.add(
            "detector",
            _number(detector.get("map_50")),
            _number(detector.get("map")),
            _number(detector.get("attribute_accuracy")),
            _number(detector.get("recall")),
            ours=True,
        )
        section.tables.append(table)
        four = ("map_50", "map_50_weighted", "attribute_map", "attribute_map_weighted")
        if any(detector.get(name) is not None for name in four):
            paper = Table(["", "objects", "weighted", "attributes", "weighted"])
            paper.add(
                "mAP at IoU .5, as the paper states it", *(_number(detector.get(name)) for name in four)
            )
            section.tables.append(paper)
        section.text.append(
            "mAP is that of the COCO evaluation, on refined boxes. An attribute is right when the best-scored one "
            "is among the object's own. Pictures show stored regions, near-copies left out: attribute, object, score."
        )
    else:
        section.text.append("Stored regions with their labels, near-copies left out.")
    return section


def _caption_section(scores: Mapping[str, Any], examples: Mapping[str, Any], folder: Path) -> Section | None:
    captions = scores.get("caption", {})
    if not captions:
        return None
    section = Section("Top-down: captions", wide=True, figures=_figures(examples.get("captions", []), folder))
    baselines = scores.get("baselines", {})
    rows = [(MODEL_NAMES.get(role, role), values, role == "regions") for role, values in _ordered(captions)]
    rows += [
        (name, baselines[key], False)
        for key, name in (
            ("most_common_caption", "one caption for every picture"),
            ("nearest_picture", "a caption of the training picture most like it"),
            ("human_caption", "a reference against the other references"),
        )
        if baselines.get(key)
    ]
    shown = {
        key: name for key, name in _CAPTION_COLUMNS.items() if any(key in values for _, values, _ in rows)
    }
    table = Table(["captioner on", *shown.values()])
    for name, values, ours in rows:
        table.add(name, *(_number(values.get(key)) for key in shown), ours=ours)
    section.tables.append(table)
    statements = _statements_table([*rows, *_sampled_rows(rows)])
    if statements.rows:
        section.tables.append(statements)
        section.text.append(
            "Relations (left of, right of, above, below) and numbers that captions state, judged by the boxes; chance: "
            "the same statements with the relation, or the number, drawn from all stated ones."
        )
    attention = scores.get("attention", {})
    if "pointing_accuracy" in attention:
        section.text.append(
            f"While it says a noun, the model's strongest region lies on such an object (IoU at least .5) for "
            f"{_percent(attention['pointing_accuracy'])} of the nouns; a region drawn at random would for "
            f"{_percent(attention['chance'])}."
        )
    section.text.append(
        "Below, attention word by word: bright where the weights lie, the strongest region outlined, its weight "
        "after the word."
    )
    return section


def _sampled_rows(rows: Sequence[tuple[str, Mapping[str, Any], bool]]) -> list[tuple[str, Any, bool]]:
    return [
        (f"{name}, sampled", values["sampled"], ours) for name, values, ours in rows if "sampled" in values
    ]


def _statements_table(rows: Sequence[tuple[str, Mapping[str, Any], bool]]) -> Table:
    table = Table(
        ["captions of", "relations true", "by chance", "stated", "numbers true", "by chance", "stated"]
    )
    for name, values, ours in rows:
        if values.get("stated_relations") or values.get("stated_numbers"):
            cells = [
                cell
                for kind in ("relations", "numbers")
                for cell in (
                    _number(values.get(f"true_{kind}")),
                    _number(values.get(f"true_{kind}_chance")),
                    f"{values.get(f'stated_{kind}', 0):,}",
                )
            ]
            table.add(name, *cells, ours=ours)
    return table


def _vqa_section(scores: Mapping[str, Any], examples: Mapping[str, Any], folder: Path) -> Section | None:
    vqa = scores.get("vqa", {})
    if not vqa:
        return None
    section = Section("Top-down: answers", figures=_figures(examples.get("answers", []), folder))
    baseline = scores.get("baselines", {}).get("most_common_answer", {})
    types = sorted({kind for values in [*vqa.values(), baseline] for kind in values.get("by_type", {})})
    shown = types if len(types) <= 10 else []
    table = Table(["model", "all", *shown])
    for role, values in _ordered(vqa):
        name = f"{values['model']} ({MODEL_NAMES.get(role, role)})"
        by_type = values.get("by_type", {})
        table.add(
            name,
            _number(values.get("accuracy")),
            *(_number(by_type.get(kind)) for kind in shown),
            ours=role == "regions",
        )
    if baseline:
        table.add(
            "most common answer",
            _number(baseline.get("accuracy")),
            *(_number(baseline.get("by_type", {}).get(kind)) for kind in shown),
        )
    section.tables.append(table)
    if "paper" in vqa:
        section.text.append(
            "Two models answer. The paper's form (gated tanh layers, one attention, sigmoid scores) is the published "
            "reference: it is here so that results compare with the literature, and it needs long training before "
            "it ties a word of the question to a region. The binding form (product attention, two glimpses, a count "
            "without duplicates) does so within minutes, which is why it carries this report's headline figure."
        )
    section.text.append(
        "Figures at the regions are the model's unnormalised attention weights, before the softmax over regions."
    )
    return section


def _worth_section(scores: Mapping[str, Any]) -> Section | None:
    lines = []
    captions, vqa = scores.get("caption", {}), scores.get("vqa", {})
    if {"regions", "grid"} <= captions.keys():
        regions, grid = captions["regions"]["cider_d"], captions["grid"]["cider_d"]
        lines.append(
            f"Captions: CIDEr-D {regions:.3f} on regions, {grid:.3f} on the grid: {regions - grid:+.3f} for regions."
        )
    if {"regions", "grid"} <= vqa.keys():
        regions, grid = vqa["regions"]["accuracy"], vqa["grid"]["accuracy"]
        lines.append(
            f"Answers: {_percent(regions)} on regions, {_percent(grid)} on the grid: "
            f"{100 * (regions - grid):+.1f} points for regions."
        )
    if not lines:
        return None
    note = "Same models, same budget of steps; the grid is the map of the same backbone, pooled to about as many cells."
    return Section("What regions are worth", text=[note, *lines])


def _seconds_section(scores: Mapping[str, Any]) -> Section | None:
    seconds = dict(scores.get("seconds", {}))
    if not seconds:
        return None
    total = seconds.pop("total", sum(seconds.values()))
    longest = max([*seconds.values(), 1e-9])
    rows = [
        {"name": name, "text": _duration(value), "percent": round(100 * value / longest)}
        for name, value in seconds.items()
    ]
    rows.append({"name": "from start to end", "text": _duration(total), "percent": 0})
    return Section(
        "Time of every stage", text=["Stages of training run side by side, one core each."], seconds=rows
    )


def _origin_section(scores: Mapping[str, Any]) -> Section:
    table = Table(["", ""])
    if "k" in scores:
        table.add("regions a picture (k)", str(scores["k"]))
    if "seed" in scores:
        table.add("seed", str(scores["seed"]))
    for name, value in scores.get("store", {}).items():
        table.add(f"store, {name}", str(value))
    for name, value in scores.get("versions", {}).items():
        table.add(name, str(value))
    return Section("Where this comes from", tables=[table])


def _figures(examples: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "path": example["picture"],
            "data": base64.b64encode((folder / example["picture"]).read_bytes()).decode("ascii"),
            "alt": example["alt"],
            "lines": example["lines"],
        }
        for example in examples
    ]


def _ordered(models: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    order = list(MODEL_NAMES)
    return sorted(models.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
