"""METEOR and SPICE by the official tools of pycocoevalcap, which are Java programs; nothing of them is rebuilt here.

SPICE needs a parser besides (500 MB, which pycocoevalcap fetches); where something is missing, the message says what.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from stage2_models.caption_metrics import CaptionScores, Words
from store_schema.errors import UsageError

_SPICE_PARSER = "stanford-corenlp-3.6.0-models.jar"


def meteor(candidates: Mapping[str, Words], references: Mapping[str, Sequence[Words]]) -> CaptionScores:
    """Score as `score_captions` does, by METEOR 1.5: "meteor", of all and of each picture.

    Errors: `UsageError` where there is no Java.
    """
    _need_java("METEOR")
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    try:
        overall, each = scorer.compute_score(*_texts(candidates, references))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"METEOR's Java program failed ({error}); does 'java -version' work here?"
        ) from error
    finally:
        for stream in (scorer.meteor_p.stdin, scorer.meteor_p.stdout, scorer.meteor_p.stderr):
            stream.close()
        scorer.meteor_p.kill()
        scorer.meteor_p.wait()
    return _scores("meteor", overall, dict(zip(candidates, each, strict=True)))


def spice(candidates: Mapping[str, Words], references: Mapping[str, Sequence[Words]]) -> CaptionScores:
    """Score as `score_captions` does, by SPICE 1.0: "spice", of all and of each picture.

    Errors: `UsageError` where there is no Java, or no parser.
    """
    _need_java("SPICE")
    from pycocoevalcap.spice import spice as official

    parser = Path(official.__file__).parent / "lib" / _SPICE_PARSER
    if not parser.is_file():
        raise UsageError(
            f"SPICE needs Stanford's parser at {parser}, which is not there; 'python -c \"from "
            "pycocoevalcap.spice.get_stanford_models import get_stanford_models as g; g()\"' fetches it"
        )
    truths, hypotheses = _texts(candidates, references)
    overall, each = official.Spice().compute_score(truths, hypotheses)
    by_image = {image_id: score["All"]["f"] for image_id, score in zip(sorted(candidates), each, strict=True)}
    return _scores("spice", overall, by_image)


def _need_java(name: str) -> None:
    if shutil.which("java") is None:
        raise UsageError(
            f"{name} is a Java program, and there is no 'java' here; install a Java runtime, or leave {name} out: "
            "BLEU, ROUGE-L and CIDEr-D need none"
        )


def _texts(
    candidates: Mapping[str, Words], references: Mapping[str, Sequence[Words]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    truths = {image_id: [" ".join(words) for words in references[image_id]] for image_id in candidates}
    return truths, {image_id: [" ".join(words)] for image_id, words in candidates.items()}


def _scores(name: str, overall: float, by_image: Mapping[str, float]) -> CaptionScores:
    per_image = {image_id: {name: float(score)} for image_id, score in by_image.items()}
    return CaptionScores({name: float(overall)}, per_image)
