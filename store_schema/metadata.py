"""What a region store says about itself: enough to explain it years later, enough to refuse mixing.

The metadata is written once, when the store is made, as attributes of the root group.
"""

import contextlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, get_args

from store_schema.errors import ConfigError, StoreDamagedError, StoreMismatchError
from store_schema.fingerprint import fingerprint
from store_schema.layout import (
    ID_CHUNK_BYTES,
    NO_LABEL,
    NOT_WRITTEN,
    SCHEMA_VERSION,
    ArraySpec,
    Codec,
    array_specs,
)

BoxSource = Literal["proposal", "refined", "regressed", "given", "grid"]
FeatureDtype = Literal["float16", "float32"]


def code_version() -> str:
    """The installed version of this toolkit, "unknown" where it runs from a bare source tree."""
    try:
        return importlib.metadata.version("butd")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def software_versions() -> dict[str, str]:
    """Python's version and those of the installed libraries that can change a feature, without importing them."""
    versions = {"python": platform.python_version()}
    for name in ("numpy", "pillow", "torch", "torchvision"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


@dataclass(frozen=True, kw_only=True)
class StoreMetadata:
    """How the regions of a store were made and how they lie on disk.

    Errors: `ConfigError` where a value is outside its range or is not JSON-like.
    """

    feature_dim: int
    """D, numbers in a region's feature; 0: boxes and labels only, the store has no array of features."""
    max_regions: int
    """K, region slots of an image."""
    min_regions: int
    """Equal to `max_regions` for fixed k; less makes the store adaptive."""
    box_source: BoxSource
    detector: Mapping[str, Any]
    """JSON with at least "name" and "fingerprint" (sha256 of weights and config); "path" and "preprocessing"."""
    selection: Mapping[str, Any]
    """JSON: thresholds and other settings of the choice of regions."""
    object_names: tuple[str, ...] = ()
    """Empty: the detector has no classes and the store no object arrays."""
    attribute_names: tuple[str, ...] = ()
    feature_dtype: FeatureDtype = "float16"
    """Also the type of the scores."""
    block_size: int = 256
    """Images in a block, which is a shard, which is a task."""
    codec: Codec = "none"
    code_version: str = field(default_factory=code_version)
    software: Mapping[str, str] = field(default_factory=software_versions)
    """Versions of the libraries that made the first block, for the record. Stores may lack it: empty."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _check_range("feature_dim", self.feature_dim, 0, 1 << 24)
        _check_range("max_regions", self.max_regions, 1, NOT_WRITTEN - 1)
        _check_range("min_regions", self.min_regions, 0, self.max_regions)
        _check_range("block_size", self.block_size, 1, 1 << 20)
        _check_choice("box_source", self.box_source, get_args(BoxSource))
        _check_choice("feature_dtype", self.feature_dtype, get_args(FeatureDtype))
        _check_choice("codec", self.codec, get_args(Codec))
        for name in ("detector", "selection", "software"):
            object.__setattr__(self, name, _as_json(name, getattr(self, name)))
        for name in ("object_names", "attribute_names"):
            object.__setattr__(self, name, _as_names(name, getattr(self, name)))
        for key in ("name", "fingerprint"):
            if not isinstance(self.detector.get(key), str) or not self.detector[key]:
                raise ConfigError(
                    f"store metadata: detector needs a text under {key!r}, got {dict(self.detector)}"
                )

    @property
    def adaptive(self) -> bool:
        """Whether images have different numbers of regions by intent."""
        return self.min_regions < self.max_regions

    def arrays(self, id_bytes: int = ID_CHUNK_BYTES) -> dict[str, ArraySpec]:
        """Every array of the store by name, `num_regions` last."""
        return array_specs(
            feature_dim=self.feature_dim,
            max_regions=self.max_regions,
            adaptive=self.adaptive,
            feature_dtype=self.feature_dtype,
            block_size=self.block_size,
            has_objects=bool(self.object_names),
            has_attributes=bool(self.attribute_names),
            id_bytes=id_bytes,
        )

    def features_fingerprint(self) -> str:
        """What stage two must match: which detector made the features, of which boxes, with which labels."""
        return fingerprint(
            {
                "detector": self.detector["fingerprint"],
                "box_source": self.box_source,
                "feature_dim": self.feature_dim,
                "object_names": self.object_names,
                "attribute_names": self.attribute_names,
            }
        )

    def identity(self) -> dict[str, Any]:
        """All that two stores with the same content share: everything but the versions of software, and paths."""
        content = self.to_json()
        del content["code_version"], content["software"]
        content["detector"] = {key: value for key, value in self.detector.items() if key != "path"}
        return content

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, by field name."""
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in ("object_names", "attribute_names"):
            content[name] = list(content[name])
        return content

    @classmethod
    def from_json(cls, content: object, where: str) -> Self:
        """Read what `to_json` gave.

        Errors: `StoreMismatchError` for another schema version, `StoreDamagedError` for anything else that does
        not fit; both name `where`.
        """
        if not isinstance(content, Mapping) or not isinstance(content.get("schema_version"), int):
            raise StoreDamagedError(
                f"{where}: the store's metadata has no schema_version; restore the file from a copy"
            )
        if content["schema_version"] != SCHEMA_VERSION:
            remedy = "use a newer butd, which knows it"
            if content["schema_version"] < SCHEMA_VERSION:
                remedy = "bring it up to date with 'butd store upgrade'"
            raise StoreMismatchError(
                f"{where}: the store has schema version {content['schema_version']}, this code (butd "
                f"{code_version()}) reads version {SCHEMA_VERSION}; {remedy}"
            )
        content = {"software": {}} | dict(content)
        names = {item.name for item in fields(cls)}
        if set(content) != names:
            odd = sorted(set(content) ^ names)
            raise StoreDamagedError(f"{where}: the store's metadata has missing or unknown keys {odd}")
        try:
            return cls(**content)
        except (ConfigError, TypeError) as error:
            raise StoreDamagedError(f"{where}: the store's metadata does not hold: {error}") from error


def first_difference(asked: StoreMetadata, stored: StoreMetadata) -> str | None:
    """The first field in which two stores differ, in words; None where they can share a store."""
    mine, theirs = asked.identity(), stored.identity()
    for name in mine:
        if mine[name] != theirs[name]:
            return f"{name} is {_shorten(theirs[name])} in the store and {_shorten(mine[name])} now"
    return None


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:120]}... ({len(text)} characters)"


def _check_range(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(
            f"store metadata: {name} must be a whole number from {low} to {high}, got {value!r}"
        )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"store metadata: {name} must be one of {', '.join(choices)}, got {value!r}")


def _as_json(name: str, value: object) -> dict[str, Any]:
    try:
        plain = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"store metadata: {name} must hold plain JSON values: {error}") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"store metadata: {name} must be a mapping, got {value!r}")
    return plain


def _as_names(name: str, value: Iterable[str]) -> tuple[str, ...]:
    names = tuple(value)
    if isinstance(value, str) or not all(isinstance(item, str) for item in names):
        raise ConfigError(f"store metadata: {name} must be a sequence of texts, got {_shorten(value)}")
    if len(names) > NO_LABEL:
        raise ConfigError(f"store metadata: {name} holds {len(names)} names, at most {NO_LABEL} fit")
    return names
