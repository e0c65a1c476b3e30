"""Classifiers of the timm library as sources of feature maps, by timm's own names: `timm:tf_efficientnet_lite0`.

An architecture is built without weights; weights come from a file, or from where timm keeps them. Only architectures
whose last features are a map [B, C, h, w] at any picture size will do: no transformers of one fixed size. timm
loads torch, so this module is imported only where such a name is given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from stage1_detect.config import Interpolation
from stage1_detect.spec import TIMM, ClassifierConfig
from store_schema.errors import UsageError


@dataclass(frozen=True)
class TimmFacts:
    """What timm says of an architecture and its usual weights."""

    hub_id: str
    """Repository of the weights on the Hugging Face hub; empty where timm has none there."""
    channels: int
    """Of the last feature map."""
    head: str
    """Prefix of the classifying layer's tensors, which are not used."""
    pixel_mean: tuple[float, ...]
    """Of 0..255, as `ClassifierConfig` takes it; so is `pixel_std`."""
    pixel_std: tuple[float, ...]
    interpolation: Interpolation


def timm_config(name: str, *, short_side: int) -> ClassifierConfig:
    """The configuration of a `timm:NAME`, with the preprocessing of its usual weights. Errors: see `timm_facts`."""
    facts = timm_facts(name)
    return ClassifierConfig(
        name=name,
        short_side=short_side,
        long_side=2 * short_side,
        pixel_mean=facts.pixel_mean,
        pixel_std=facts.pixel_std,
        interpolation=facts.interpolation,
    )


@lru_cache(maxsize=8)
def timm_facts(name: str) -> TimmFacts:
    """Facts of a `timm:NAME`, without its weights.

    Errors: `UsageError` where timm is not installed, does not know the name, or where the network gives no map.
    """
    create = _create()
    timm = _timm()
    architecture = name.removeprefix(TIMM)
    config = timm.get_pretrained_cfg(architecture)
    if config is None or not timm.is_model(architecture):
        near = timm.list_models(f"*{architecture.split('.')[0]}*")[:3]
        raise UsageError(
            f"{name}: timm {timm.__version__} has no such model"
            + (f"; it has {', '.join(near)}" if near else "")
        )
    try:
        with torch.device("meta"):  # no memory, no arithmetic
            network = create(architecture)
            shape = tuple(network.forward_features(torch.empty(1, 3, 96, 128)).shape)
    except (AssertionError, RuntimeError) as error:
        raise UsageError(
            f"{name}: takes no pictures of other sizes ({error}); take a convolutional network"
        ) from error
    if len(shape) != 4 or shape[1] != network.num_features:
        raise UsageError(
            f"{name}: gives no feature map [B, C, h, w] but {list(shape)}; take a convolutional network"
        )
    return TimmFacts(
        hub_id=str(config.hf_hub_id or ""),
        channels=int(network.num_features),
        head=str(config.classifier),
        pixel_mean=tuple(255 * value for value in config.mean),
        pixel_std=tuple(255 * value for value in config.std),
        interpolation="bicubic_antialias" if config.interpolation == "bicubic" else "bilinear_antialias",
    )


class TimmBody(nn.Module):
    """A timm network up to its last feature map; the names of its tensors are timm's own, after `network.`."""

    def __init__(self, name: str) -> None:
        """Build the architecture with weights from torch's generator. Errors: those of `timm_facts`."""
        super().__init__()
        timm_facts(name)
        self.network = _create()(name.removeprefix(TIMM))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] to [B, C, h', w']."""
        features: Tensor = self.network.forward_features(images)
        return features


def _create() -> Callable[[str], Any]:
    timm = _timm()
    return lambda architecture: timm.create_model(architecture, pretrained=False)


def _timm() -> Any:  # noqa: ANN401  (a package that is not always there)
    try:
        import timm
    except ImportError as error:
        raise UsageError(
            "--weights timm:NAME needs timm: install 'butd[timm]' in this environment"
        ) from error
    return timm
