"""Published weights into our model folders: which function reads which kind, and the one place that writes.

A converter is a plain function of a stage: `convert(source: Path, **settings: str)` returns the state dict, what
model.json says, and notes for the user. It writes nothing; the folder appears whole or not at all.
"""

import importlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store_schema.artifacts import DESCRIPTION, WEIGHTS, check_model_dir
from store_schema.errors import CheckpointError, InputNotFoundError, UsageError
from store_schema.fingerprint import file_sha256

if TYPE_CHECKING:
    from torch import Tensor

CONVERTERS = {
    "hf-frcnn-vg": "stage1_detect.published.huggingface:convert",
    "bua-caffe-pth": "stage1_detect.published.milvlg:convert",
    "caffemodel": "stage1_detect.published.caffe:convert",
    "torchvision": "stage1_detect.published.torchvision_coco:convert",
    "detectron2-c4": "stage1_detect.published.detectron2:convert",
    "butd-vqa": "stage2_models.convert.butd_vqa:convert",
    "self-critical-updown": "stage2_models.convert.self_critical:convert",
}
"""Kind of published weights: module and function, imported when it is asked for."""


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote."""

    num_tensors: int
    num_bytes: int
    notes: tuple[str, ...]
    """What the converter assumed, or left out and why; one sentence each."""


def convert(
    source: Path, out: Path, origin: str, settings: Sequence[str] = (), *, reference: str = ""
) -> Converted:
    """Read published weights and write our model folder.

    Args:
        source: the file, or the folder with it, as the kind says.
        out: must not exist.
        origin: a name in `CONVERTERS`.
        settings: "name=value" for arguments that this kind takes.
        reference: where the source was fetched from, for the record.

    Errors: `InputNotFoundError`; `UsageError` for settings that the kind does not take or an `out` that exists;
    `CheckpointError` for a file that is not what it should be, naming the tensor.
    """
    if not source.exists():
        raise InputNotFoundError(f"{source}: no such file or folder; expected weights of the kind {origin!r}")
    if out.exists():
        raise UsageError(f"{out} exists already; give a new folder, or remove it")
    module, function = CONVERTERS[origin].split(":")
    converter = getattr(importlib.import_module(module), function)
    arguments = _arguments(settings, list(inspect.signature(converter).parameters)[1:], origin)
    state, description, notes = converter(source, **arguments)
    facts = _source_facts(source, origin, arguments) | ({"reference": reference} if reference else {})
    description = {**description, "source": facts}
    num_bytes = write_model_folder(out, state, description)
    return Converted(len(state), num_bytes, tuple(notes))


def write_model_folder(out: Path, state: "Mapping[str, Tensor]", description: Mapping[str, Any]) -> int:
    """Write model.safetensors and model.json, whole or not at all; return the bytes of the weights.

    Errors: `CheckpointError` for a tensor that is not finite.
    """
    import torch
    from safetensors.torch import save_file

    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"tensor {name!r} holds values that are not finite; get the file again")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        partial.chmod(0o755)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial / WEIGHTS)
        (partial / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
        check_model_dir(partial)
        num_bytes = (partial / WEIGHTS).stat().st_size
        os.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return num_bytes


def _arguments(settings: Sequence[str], known: Sequence[str], origin: str) -> dict[str, str]:
    arguments = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in known:
            takes = f"takes {', '.join(f'{n}=...' for n in known)}" if known else "takes no settings"
            raise UsageError(f"--set {setting}: the kind {origin!r} {takes}")
        arguments[name] = value
    return arguments


def _source_facts(source: Path, origin: str, arguments: Mapping[str, str]) -> dict[str, Any]:
    """Where the weights came from, as JSON: the kind, and the hash of each file that was there."""
    files = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.is_file())
    return {
        "kind": origin,
        "settings": dict(arguments),
        "sha256": {file.name: file_sha256(file) for file in files},
    }
