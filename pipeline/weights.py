"""What `--weights` may say: a path, or a reference that is fetched, converted once, and remembered.

Converted models lie in $XDG_CACHE_HOME/butd (else ~/.cache/butd), a folder a reference. A reference without
revision stays what it was when it was first used; remove its folder to look again.
"""

import argparse
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.conversion import convert
from store_schema.artifacts import DESCRIPTION, WEIGHTS, find_model_dir, read_model_json

logger = logging.getLogger(__name__)


def resolve_weights(weights: str, *, classifier: bool = False) -> str:
    """The path of a model folder, or of a classifier's file, for what a user wrote.

    Args:
        weights: a path (returned as it is), `hf:OWNER/NAME[@REVISION]`, `torchvision:NAME` or a URL.
        classifier: the weights are a classifier's: fetched, not converted.

    Errors: those of `fetch`, `recognise` and `convert`.
    """
    from stage1_detect.published import fetch

    if not fetch.is_reference(weights):
        return weights
    folder = cached_folder(weights)
    if (folder / DESCRIPTION).is_file():
        return str(folder)
    path = fetch.fetch(weights)
    if classifier:
        return str(path)
    if (path / DESCRIPTION).is_file() and (path / WEIGHTS).is_file():  # one of ours
        return str(path)
    from stage1_detect.published.recognise import recognise

    kind = recognise(path)
    logger.info("converting %s (%s) to %s", fetch.shown(weights), kind, folder)
    for note in convert(path, folder, kind, reference=fetch.shown(weights)).notes:
        logger.info("%s", note)
    return str(folder)


def cached_folder(reference: str) -> Path:
    """Where the model of a reference lies once it is converted."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "butd"
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", reference.split("?")[0]).strip("-")[-60:]
    return cache / f"{readable}-{hashlib.sha256(reference.encode()).hexdigest()[:12]}"


def published_extraction(weights: str) -> dict[str, Any]:
    """The mode and the selection that the publishers of a detector use: "mode" and "selection"; empty for others."""
    path = Path(weights)
    if not path.is_dir():
        return {}
    extraction: dict[str, Any] = read_model_json(find_model_dir(path)).get("extraction") or {}
    return extraction


class WeightsOption(argparse.Action):
    """`--weights WEIGHTS`; alone, or with "list", it prints the known detectors and ends."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(option_strings, dest, nargs="?", **kwargs)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,  # noqa: ANN401
        option_string: str | None = None,
    ) -> None:
        """Store the value, or print and exit."""
        if values in (None, "list"):
            from stage1_detect.published.presets import listing

            print(listing())
            parser.exit(0)
        setattr(namespace, self.dest, values)
