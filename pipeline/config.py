"""Configuration: one TOML file and `--set section.key=value` into the packages' own frozen dataclasses.

Each package owns the dataclass of its knobs and checks their ranges in `__post_init__`; here only names and
types are checked. An unknown key is an error that suggests the closest name, never silence. Importing this
module costs nothing: no torch, no stage.
"""

# ruff: noqa: ANN401  (what a file holds has any type until it is checked: that is this module's work)

import contextlib
import difflib
import tomllib
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tomli_w

from store_schema.errors import ConfigError, InputNotFoundError

ABSENT = "(not set)"
"""Stands in for the value of a key that one of two compared configurations lacks."""


def load_config(
    section_types: Mapping[str, type],
    file: Path | None = None,
    sets: Iterable[str] = (),
    *,
    unread_sections: Collection[str] = (),
) -> dict[str, Any]:
    """Build every section from the file, then from the `sets`, which win; what neither names has its default.

    Args:
        section_types: the dataclass of each section, by the section's name.
        file: a TOML file with these sections, or None for defaults alone.
        unread_sections: sections that the file may hold besides, such as the inputs in a run's resolved config.
        sets: `section.key=value`, the value written as in TOML; what is no TOML is taken as a string.

    Returns:
        The instance of each section, by its name, in the order of `section_types`.

    Raises:
        InputNotFoundError: the file does not exist.
        ConfigError: it is no TOML, or a key is unknown, mistyped, missing or out of range; the message names
            the key, where it stands and the closest known name.
    """
    origin = "the defaults" if file is None else str(file)
    values = {} if file is None else read_toml(file)
    for assignment in sets:
        _assign(values, assignment)
    for name, value in values.items():
        if name not in section_types and name not in unread_sections:
            raise ConfigError(_unknown_section(name, value, section_types, origin))
    return {
        name: _build(section_type, values.get(name, {}), name, origin)
        for name, section_type in section_types.items()
    }


def read_toml(file: Path) -> dict[str, Any]:
    """Read a TOML file; ConfigError with the place when it is not one."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputNotFoundError(f"there is no configuration file {file}") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{file} is a folder; expected a TOML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not a TOML file: it is not UTF-8 text") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not a TOML file: {error}") from error


def config_to_dict(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dataclass sections (or plain mappings) into nested dictionaries of TOML types.

    None, which TOML lacks, is left out where it is the field's default and written as "none" elsewhere.
    """
    return {name: _plain(value) for name, value in sections.items()}


def config_to_toml(sections: Mapping[str, Any]) -> str:
    """Write the sections as TOML that `load_config` reads back as the same values."""
    return tomli_w.dumps(config_to_dict(sections))


def config_differences(
    old: Mapping[str, Any], new: Mapping[str, Any], ignored_keys: frozenset[str] = frozenset()
) -> dict[str, tuple[Any, Any]]:
    """List what differs, as {"section.key": (old value, new value)}, in the order of `old`, then `new`.

    `ignored_keys` are names of keys without their section. A key that one side lacks has the value ABSENT.
    """
    old_values, new_values = _flatten(old), _flatten(new)
    return {
        key: (old_values.get(key, ABSENT), new_values.get(key, ABSENT))
        for key in old_values | new_values
        if old_values.get(key, ABSENT) != new_values.get(key, ABSENT)
        and key.rsplit(".", 1)[-1] not in ignored_keys
    }


@dataclass(frozen=True)
class _Given:
    """A value from the command line: as TOML reads it, and as it was typed."""

    value: Any
    text: str
    origin: str


def _assign(values: dict[str, Any], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or len(path) < 2 or not all(path):
        raise ConfigError(f"--set {assignment}: expected section.key=value, for instance training.lr=1e-3")
    table = values
    for part in path[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {assignment}: {part} is a value, not a section")
    table[path[-1]] = _Given(_parse_toml_value(text.strip()), text.strip(), f"--set {assignment}")


def _parse_toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _build(cls: type, values: Any, path: str, origin: str) -> Any:
    """Make one dataclass from a table of values; `path` is its dotted name."""
    if not isinstance(values, Mapping):
        value, origin = _unwrap(values, origin)
        raise ConfigError(f"{path} in {origin}: expected a section [{path}], got {_show(value)}")
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls) if field.init}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(_unknown_key(key, path, _unwrap(value, origin)[1], list(known)))
    missing = [
        name
        for name, field in known.items()
        if name not in values and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise ConfigError(f"{path}.{missing[0]} has no default: give it in {origin} or by --set")
    arguments = {key: _convert(value, hints[key], f"{path}.{key}", origin) for key, value in values.items()}
    try:
        return cls(**arguments)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"[{path}] in {origin}: {error}") from error


def _convert(value: Any, expected: Any, path: str, origin: str) -> Any:
    """Check a value against its field's type; numbers and strings typed after --set are read by that type."""
    if not isinstance(value, _Given):
        return _check(value, expected, path, origin)
    candidates = [value.value, value.text]
    with contextlib.suppress(ValueError):
        candidates.append(float(value.text))  # ".5" and "1." are no TOML
    for candidate in candidates:
        try:
            return _check(candidate, expected, path, value.origin)
        except ConfigError:
            continue
    return _check(value.value, expected, path, value.origin)


def _check(value: Any, expected: Any, path: str, origin: str) -> Any:
    """Return the value as the type wants it (list to tuple, int to float), or raise ConfigError."""
    shape, arguments = get_origin(expected), get_args(expected)
    if expected is Any:
        return value
    if shape in (Union, types.UnionType):
        return _check_union(value, arguments, path, origin)
    if shape is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise ConfigError(_wrong(path, origin, _names_of(expected), value, _closest(value, arguments)))
    if is_dataclass(expected) and isinstance(expected, type):
        return _build(expected, value, path, origin)
    if shape in (tuple, list) and isinstance(value, list):
        return _check_sequence(value, expected, path, origin)
    if (
        shape is not None
        and isinstance(shape, type)
        and issubclass(shape, Mapping)
        and isinstance(value, dict)
    ):
        return {key: _convert(item, arguments[1], f"{path}.{key}", origin) for key, item in value.items()}
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if expected is Path and isinstance(value, str):
        return Path(value)
    if expected in (bool, int, float, str) and type(value) is expected:
        return value
    raise ConfigError(_wrong(path, origin, _names_of(expected), value))


def _check_union(value: Any, arguments: tuple[Any, ...], path: str, origin: str) -> Any:
    if value == "none" and types.NoneType in arguments:
        return None
    arms = [argument for argument in arguments if argument is not types.NoneType]
    for arm in arms:
        try:
            return _check(value, arm, path, origin)
        except ConfigError:
            if len(arms) == 1:
                raise
    raise ConfigError(_wrong(path, origin, " or ".join(map(_names_of, arms)), value))


def _check_sequence(value: list[Any], expected: Any, path: str, origin: str) -> Any:
    shape, arguments = get_origin(expected), get_args(expected)
    if shape is list:
        return [_check(item, arguments[0], f"{path}[{i}]", origin) for i, item in enumerate(value)]
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise ConfigError(_wrong(path, origin, f"{len(arguments)} values", value))
    return tuple(
        _check(item, argument, f"{path}[{i}]", origin)
        for i, (item, argument) in enumerate(zip(value, arguments, strict=True))
    )


def _unwrap(value: Any, origin: str) -> tuple[Any, str]:
    return (value.value, value.origin) if isinstance(value, _Given) else (value, origin)


def _names_of(expected: Any) -> str:
    """Say a type in words."""
    shape, arguments = get_origin(expected), get_args(expected)
    if shape is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if shape in (tuple, list):
        return "a list"
    words = {bool: "true or false", int: "an integer", float: "a number", str: "a string", Path: "a path"}
    return words.get(
        expected, "a table" if shape is not None else getattr(expected, "__name__", str(expected))
    )


def _show(value: Any) -> str:
    return f"the string {value!r}" if isinstance(value, str) else repr(value)


def _closest(value: Any, choices: Iterable[Any]) -> str | None:
    matches = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    return matches[0] if matches else None


def _wrong(path: str, origin: str, expected: str, value: Any, closest: str | None = None) -> str:
    hint = f"; did you mean {closest!r}?" if closest else ""
    return f"{path} in {origin}: expected {expected}, got {_show(value)}{hint}"


def _unknown_key(key: str, path: str, origin: str, known: list[str]) -> str:
    closest = _closest(key, known)
    hint = f"did you mean {closest!r}?" if closest else f"known are {', '.join(known) or 'none'}"
    return f"unknown key {key!r} in [{path}] of {origin}; {hint}"


def _unknown_section(name: str, value: Any, section_types: Mapping[str, type], origin: str) -> str:
    """The message for a section that nobody owns; a key that another section has is pointed at."""
    keys = list(value) if isinstance(value, Mapping) else [name]
    if isinstance(value, Mapping) and value:
        origin = _unwrap(next(iter(value.values())), origin)[1]
    homes = [
        f"{section}.{key}"
        for key in keys
        for section, section_type in section_types.items()
        if key in typing.cast(dict[str, Any], getattr(section_type, "__dataclass_fields__", {}))
    ]
    closest = _closest(name, section_types)
    if closest:
        hint = f"did you mean [{closest}]?"
    elif homes:
        hint = f"did you mean {homes[0]}?"
    else:
        hint = "known are " + ", ".join(f"[{section}]" for section in section_types)
    what = f"section [{name}]" if isinstance(value, Mapping) else f"key {name!r} outside of any section"
    return f"unknown {what} in {origin}; {hint}"


def _plain(value: Any) -> Any:
    """Turn a value into TOML types, recursively."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain("none" if getattr(value, field.name) is None else getattr(value, field.name))
            for field in fields(value)
            if not (getattr(value, field.name) is None and field.default is None)
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat
