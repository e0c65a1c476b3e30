"""A pretrained ImageNet classifier as a source of feature maps.

A ResNet without its pool and linear layers is the paper's grid baseline; MobileNetV2 is for small machines; timm has
hundreds of others (`timm_models.py`). Weights come from a local file. Nothing is unpickled but tensors.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from stage1_detect import transform
from stage1_detect.backbones import fold_batch_norm
from stage1_detect.spec import TIMM, ClassifierConfig
from stage1_detect.timm_models import TimmBody, timm_facts
from stage1_detect.transform import ImageBatch
from store_schema.errors import CheckpointError, InputNotFoundError


class Classifier:
    """Pictures in, the last feature map out; weights fixed."""

    def __init__(self, body: nn.Module, config: ClassifierConfig, device: str | torch.device) -> None:
        """Take over the body: evaluation mode, BatchNorm folded, channels last, on the device."""
        body.eval().requires_grad_(False)
        fold_batch_norm(body)
        self.body = body.to(device).to(memory_format=torch.channels_last)
        self.config = config
        self.device = torch.device(device)

    def prepare(self, images: Sequence[NDArray[np.uint8]]) -> ImageBatch:
        """One batch of RGB pictures [H, W, 3]. Errors: `ValueError` where their network sizes differ."""
        return transform.prepare(images, self.config, self.device)

    def feature_map(self, batch: ImageBatch) -> Tensor:
        """[B, D, h, w], at stride 32 for torchvision's, sizes rounded up."""
        features: Tensor = self.body(transform.in_company(batch.images, batch))
        return features[: len(batch)]

    grid_map = feature_map


def load_classifier(
    path: str | Path, config: ClassifierConfig, device: str | torch.device = "cpu"
) -> Classifier:
    """Load a classifier's weights for extraction.

    Args:
        path: a state dict, as safetensors or as torch saves it. Its names are torchvision's or timm's, with or without
            the classifying layers; or other names with the same tensors in the same order.

    Errors: `InputNotFoundError`; `CheckpointError` naming the first tensor that does not fit.
    """
    body = build_body(config.name)
    body.load_state_dict(read_body(path, config.name), strict=False)
    return Classifier(body, config, device)


def read_body(path: str | Path, name: str) -> dict[str, Tensor]:
    """A classifier's tensors under the names that they have in its `build_body`; errors as `load_classifier`."""
    path = Path(path)
    body = build_body(name).state_dict()
    own = {_published_name(name, key): key for key in body if not key.endswith(_COUNTER)}
    head = _head(name)
    tensors = {published: body[key] for published, key in own.items() if not published.startswith(head)}
    state = _match(_read_state(path), tensors, f"{path}: weights of {name}")
    return {own[published]: tensor for published, tensor in state.items()}


def build_body(name: str) -> nn.Module:
    """The network up to its last feature map, with weights from torch's generator.

    For a ResNet exactly `nn.Sequential(*list(resnet.children())[:-2])`, for MobileNetV2 its `features`, for timm's
    what `forward_features` gives. Errors: those of `timm_facts`.
    """
    if name.startswith(TIMM):
        return TimmBody(name)
    network = models.get_model(name, weights=None)
    if name == "mobilenet_v2":
        features: nn.Sequential = network.features
        return features
    return nn.Sequential(*list(network.children())[:-2])


_COUNTER = ".num_batches_tracked"
"""BatchNorm's count of training steps: of no use here, and missing from older files."""

_RESNET_CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


def _head(name: str) -> str:
    """Prefix of the classifying layer's tensors, which nothing here needs."""
    if name.startswith(TIMM):
        return f"{timm_facts(name).head}."
    return "classifier." if name == "mobilenet_v2" else "fc."


def _published_name(name: str, key: str) -> str:
    """What the library's own state dict calls the tensor that the body has under `key`."""
    if name.startswith(TIMM):
        return key.removeprefix("network.")
    if name == "mobilenet_v2":
        return f"features.{key}"
    place, rest = key.split(".", 1)
    return f"{_RESNET_CHILDREN[int(place)]}.{rest}"


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputNotFoundError(f"{path}: no such file; expected a classifier's weights")
    try:
        state: Any = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        )
    except Exception as error:  # a damaged or hostile file fails in any way: pickle, zip, header, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not readable as weights ({reason}); get the file again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path}: a state dict expected (names with tensors), it holds {type(state).__name__}"
        )
    return state


def _match(state: dict[str, Tensor], own: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """For each of our tensors the file's one: by name if the file has all our names, else by order.

    By order, a classifying layer (a weight and a bias) may follow.
    """
    given = {name: tensor for name, tensor in state.items() if not name.endswith(_COUNTER)}
    if set(own) <= set(given):
        given = {name: given[name] for name in own}
    elif len(given) not in (len(own), len(own) + 2):
        missing = next(name for name in own if name not in given)
        raise CheckpointError(
            f"{what}: {len(own)} tensors expected, {len(given)} came; {missing!r} is missing"
        )
    for (name, tensor), (given_name, came) in zip(own.items(), given.items(), strict=False):
        if tensor.shape != came.shape:
            raise CheckpointError(
                f"{what}: {name} has the shape {tuple(tensor.shape)}, the file's {given_name} has {tuple(came.shape)}"
            )
    return dict(zip(own, given.values(), strict=False))
