"""Captions in the form that COCO's server takes: a JSON list of {"image_id": number, "caption": text}; out and in.

A file is complete, one caption for each picture of a split, or it is refused. Pictures are named by their COCO id
where the images table has one, else by the image_id (as a number where it is one).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store_schema.errors import InputNotFoundError, UsageError
from store_schema.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

    from stage2_models.caption_metrics import Words


def caption_results(captions: Mapping[str, str], tables: Path, split: str) -> list[dict[str, Any]]:
    """Give captions by image_id as the server wants them, in the order of the images table.

    Errors: `UsageError` where a picture of the split has no caption, or one is of no picture of the split.
    """
    ids = _published_ids(tables, split)
    _refuse_incomplete(captions.keys(), ids.keys(), f"the split {split!r} of {tables}")
    return name_as_published({image_id: captions[image_id] for image_id in ids}, tables)


def pictures_to_caption(tables: Path, split: str) -> list[str]:
    """The pictures, by image_id, that a results file of a split must have.

    Errors: `UsageError` where the split has none.
    """
    return list(_published_ids(tables, split))


def name_as_published(captions: Mapping[str, str], tables: Path) -> list[dict[str, Any]]:
    """The entries of a results file for captions by image_id, complete or not."""
    ids = _published_ids(tables)
    return [{"image_id": ids[image_id], "caption": caption} for image_id, caption in captions.items()]


def read_caption_results(path: Path, tables: Path, split: str) -> dict[str, str]:
    """Read a results file: captions by image_id, complete for a split.

    Errors: `InputNotFoundError`; `UsageError` where it is no such file, or not complete, with the first picture.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputNotFoundError(f"there is no results file {path}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no JSON file: {error}") from error
    if not isinstance(rows, list):
        raise UsageError(
            f"{path}: a list of objects with image_id and caption expected, it is {type(rows).__name__}"
        )
    captions: dict[str, str] = {}
    image_ids = {number: image_id for image_id, number in _published_ids(tables, split).items()}
    for place, row in enumerate(rows):
        if not isinstance(row, dict) or "image_id" not in row or not isinstance(row.get("caption"), str):
            raise UsageError(
                f"{path}, entry {place}: an object with image_id and caption expected, got {row!r:.80}"
            )
        image_id = image_ids.get(row["image_id"], str(row["image_id"]))
        if image_id in captions:
            raise UsageError(f"{path}, entry {place}: picture {row['image_id']} has a caption already")
        captions[image_id] = row["caption"]
    _refuse_incomplete(
        captions.keys(), set(image_ids.values()), f"the split {split!r} of {tables}", str(path)
    )
    return captions


def score_caption_results(
    path: Path, tables: Path, split: str, java_metrics: Sequence[str] = ()
) -> dict[str, Any]:
    """Score a results file against the references of a split, on the official tokenisation.

    Errors: those of `read_caption_results`; `UsageError` where pictures have no references.
    """
    from stage2_models.caption_metrics import score_captions
    from stage2_models.tokeniser import tokenise

    frame = read_table(tables, "captions")
    references: dict[str, list[list[str]]] = {}
    for image_id, text in frame.loc[frame["split"] == split, ["image_id", "text"]].itertuples(index=False):
        references.setdefault(image_id, []).append(tokenise(text))
    texts = read_caption_results(path, tables, split)
    words = {image_id: tokenise(text) for image_id, text in texts.items()}
    return score_captions(words, references).overall | java_scores(java_metrics, words, references)


def java_scores(
    names: Sequence[str], words: "Mapping[str, Words]", references: "Mapping[str, Sequence[Words]]"
) -> dict[str, float]:
    """The scores of "meteor" and "spice", as far as they are named."""
    if not names:
        return {}
    from stage2_models import java_metrics

    scores: dict[str, float] = {}
    for name in names:
        scorer = {"meteor": java_metrics.meteor, "spice": java_metrics.spice}[name]
        scores |= scorer(words, references).overall
    return scores


def _published_ids(tables: Path, split: str | None = None) -> dict[str, int | str]:
    """How each picture (of a split) is named outside, by image_id."""
    images: pd.DataFrame = read_table(tables, "images")
    if split is not None:
        images = images[images["split"] == split]
        if images.empty:
            raise UsageError(f"{tables} has no pictures of split {split!r}")
    if "coco_id" in images and images["coco_id"].notna().all():
        return {i: int(number) for i, number in zip(images["image_id"], images["coco_id"], strict=True)}
    return {i: int(i) if i.isdecimal() and str(int(i)) == i else i for i in images["image_id"]}


def _refuse_incomplete(found: Any, expected: Any, what: str, where: str = "the captions") -> None:  # noqa: ANN401
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unknown:
        which = f"lack {len(missing)} pictures, first {missing[0]}" if missing else ""
        more = f"name {len(unknown)} that are not of it, first {unknown[0]}" if unknown else ""
        raise UsageError(
            f"{where} {' and '.join(filter(None, (which, more)))}: a results file is for all pictures of {what}, or it "
            "is refused by the server"
        )
