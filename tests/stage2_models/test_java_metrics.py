"""METEOR against the official tool's numbers, and what is said where a Java program cannot run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stage2_models.caption_metrics import CaptionScores
from stage2_models.java_metrics import meteor, spice
from stage2_models.tokeniser import tokenise
from store_schema.errors import UsageError

OFFICIAL = Path(__file__).resolve().parents[3] / "shared/data/caption_eval"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fakecap_val2014", "coco_human_loo"])
def test_meteor_equals_the_official_one_to_the_last_printed_digit(name: str) -> None:
    if not OFFICIAL.is_dir():
        pytest.skip("../shared/data/caption_eval is not here")
    if shutil.which("java") is None:
        pytest.skip("METEOR needs Java")
    results = json.loads((OFFICIAL / f"{name}_results.json").read_text())
    official = json.loads((OFFICIAL / f"{name}_scores.json").read_text())
    references: dict[str, list[list[str]]] = {}
    for annotation in json.loads((OFFICIAL / f"{name}_references.json").read_text())["annotations"]:
        references.setdefault(str(annotation["image_id"]), []).append(tokenise(annotation["caption"]))
    scores = meteor({str(row["image_id"]): tokenise(row["caption"]) for row in results}, references)
    assert scores.overall["meteor"] == official["overall"]["METEOR"]
    assert {key: value["meteor"] for key, value in scores.per_image.items()} == {
        key: value["METEOR"] for key, value in official["per_image"].items()
    }


@pytest.mark.parametrize(("scorer", "name"), [(meteor, "METEOR"), (spice, "SPICE")])
def test_without_java_the_message_says_what_is_missing(
    scorer: Callable[..., CaptionScores], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=f"{name} is a Java program.*BLEU, ROUGE-L and CIDEr-D need none"):
        scorer({"1": ["a"]}, {"1": [["a"]]})


def test_spice_without_its_parser_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pycocoevalcap.spice import spice as official

    if (Path(official.__file__).parent / "lib" / "stanford-corenlp-3.6.0-models.jar").is_file():
        pytest.skip("the parser is here")
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"needs Stanford's parser at .*get_stanford_models"):
        spice({"1": ["a"]}, {"1": [["a"]]})
