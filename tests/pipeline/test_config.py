"""TOML and --set into dataclasses: what is read, and what is said about mistakes."""

import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline.config import (
    ABSENT,
    config_differences,
    config_to_dict,
    config_to_toml,
    load_config,
)
from pipeline.training.config import TrainingConfig
from store_schema.errors import ConfigError, InputNotFoundError, UsageError

REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Inner:
    hidden: int = 8


@dataclass(frozen=True, kw_only=True)
class Model:
    kind: Literal["paper", "product"] = "paper"
    dropout: float = 0.5
    widths: tuple[int, ...] = (24, 32)
    name: str = "m"
    weights: Path | None = None
    limit: int | None = 7
    bias: bool = True
    inner: Inner = field(default_factory=Inner)
    scales: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, expected 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class Data:
    batch_size: int


SECTIONS: dict[str, type] = {"model": Model, "data": Data}


def load(tmp_path: Path, text: str, *sets: str) -> dict[str, Any]:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return load_config(SECTIONS, file, sets)


def test_file_then_sets_then_defaults(tmp_path: Path) -> None:
    text = '[model]\nkind = "product"\ndropout = 0\n[model.inner]\nhidden = 3\n[data]\nbatch_size = 4\n'
    sections = load(tmp_path, text, "data.batch_size=8", "model.widths=[1, 2, 3]")
    assert sections["model"] == Model(kind="product", dropout=0.0, widths=(1, 2, 3), inner=Inner(hidden=3))
    assert isinstance(sections["model"].dropout, float)
    assert sections["data"] == Data(batch_size=8)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("model.dropout=1e-1", {"dropout": 0.1}),
        ("model.dropout=.25", {"dropout": 0.25}),
        ("model.kind=product", {"kind": "product"}),
        ('model.kind="product"', {"kind": "product"}),
        ("model.name=123", {"name": "123"}),
        ("model.name=a=b", {"name": "a=b"}),
        ("model.bias=false", {"bias": False}),
        ("model.weights=some/where", {"weights": Path("some/where")}),
        ("model.limit=none", {"limit": None}),
        ("model.inner.hidden=5", {"inner": Inner(hidden=5)}),
        ("model.scales={a = 1, b = 2.5}", {"scales": {"a": 1.0, "b": 2.5}}),
        (" model.widths = [] ", {"widths": ()}),
    ],
)
def test_values_after_set_are_read_by_the_fields_type(assignment: str, expected: dict[str, Any]) -> None:
    assert load_config({"model": Model}, None, [assignment]) == {"model": Model(**expected)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[model]\ndroput = 0.1\n",
            r"unknown key 'droput' in \[model\] of .*config\.toml; did you mean 'dropout'\?",
        ),
        ("[model]\nzzz = 0.1\n", "known are kind, dropout"),
        ("[modle]\ndropout = 0.1\n", r"unknown section \[modle\] in .*; did you mean \[model\]\?"),
        (
            "[optimizer]\ndropout = 0.1\n",
            r"unknown section \[optimizer\] in .*; did you mean model\.dropout\?",
        ),
        (
            "dropout = 0.1\n",
            r"unknown key 'dropout' outside of any section .*; did you mean model\.dropout\?",
        ),
        ("[model.inner]\nhiden = 1\n", r"unknown key 'hiden' in \[model\.inner\] .*'hidden'"),
        ("[model]\ndropout = 'much'\n", r"model\.dropout in .*: expected a number, got the string 'much'"),
        ("[model]\ndropout = true\n", "expected a number, got True"),
        ("[model]\nbias = 1\n", "expected true or false, got 1"),
        (
            "[model]\nwidths = [1, 'a']\n",
            r"model\.widths\[1\] in .*: expected an integer, got the string 'a'",
        ),
        ("[model]\nwidths = 3\n", "expected a list, got 3"),
        ("[model]\nkind = 'papr'\n", "expected one of 'paper', 'product', .*did you mean 'paper'"),
        ("[model]\nlimit = 'x'\n", "expected an integer"),
        ("[model]\ninner = 3\n", r"expected a section \[model\.inner\], got 3"),
        ("[model]\ndropout = 2.0\n", r"\[model\] in .*: dropout is 2\.0, expected 0 to below 1"),
        ("[model\n", r"config\.toml is not a TOML file: .*line 1"),
        ("[model]\n", r"data\.batch_size has no default: give it in .*config\.toml or by --set"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_place_and_the_closest_name(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("dropout=1", r"expected section\.key=value"),
        ("model.dropout", r"expected section\.key=value"),
        (
            "model.droput=1",
            r"unknown key 'droput' in \[model\] of --set model\.droput=1; did you mean 'dropout'",
        ),
        ("model.dropout=lots", r"model\.dropout in --set model\.dropout=lots: expected a number"),
        (
            "optimizer.batch_size=1",
            r"unknown section \[optimizer\] in --set .*; did you mean data\.batch_size",
        ),
        ("model.name.first=x", r"expected a string, got"),
    ],
)
def test_a_mistake_after_set_is_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(SECTIONS, None, ["data.batch_size=1", assignment])


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match=r"no configuration file .*absent\.toml"):
        load_config(SECTIONS, tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(SECTIONS, tmp_path)
    (tmp_path / "picture.toml").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(SECTIONS, tmp_path / "picture.toml")
    assert issubclass(ConfigError, UsageError)


def test_the_resolved_configuration_is_read_back_as_it_was(tmp_path: Path) -> None:
    sections = {
        "model": Model(limit=None, weights=Path("a/b"), scales={"x": 0.1}, widths=()),
        "data": Data(batch_size=3),
        "training": TrainingConfig(lr=1e-7, schedule="step", decay_steps=(3, 9)),
    }
    file = tmp_path / "config.toml"
    file.write_text(config_to_toml(sections))
    assert load_config({**SECTIONS, "training": TrainingConfig}, file) == sections
    assert tomllib.loads(file.read_text()) == config_to_dict(sections)


def test_a_resolved_configuration_may_hold_sections_that_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[data]\nbatch_size = 3\n[inputs]\ntables = "somewhere"\n')
    assert load_config({"data": Data}, file, unread_sections=["inputs"]) == {"data": Data(batch_size=3)}


def test_differences_name_keys_with_both_values() -> None:
    old = {"training": {"lr": 0.1, "device": "cpu"}, "data": {"paths": ["a"], "gone": 1}}
    new = {"training": {"lr": 0.2, "device": "cuda"}, "data": {"paths": ("a",)}, "model": {"k": 3}}
    assert config_differences(old, new, frozenset({"device"})) == {
        "training.lr": (0.1, 0.2),
        "data.gone": (1, ABSENT),
        "model.k": (ABSENT, 3),
    }


def test_reading_configurations_imports_no_torch() -> None:
    code = (
        "import sys, pipeline.config, pipeline.training.config, pipeline.training.resume, pipeline.training.runs; "
        "assert not {'torch', 'pandas', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)
