"""Conditions on pictures give what Python would for each, and nothing outside the grammar is run."""

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from store_schema.errors import UsageError
from store_schema.row_filter import matching_rows

IDS = ["coco:1", "vg:2", "coco:33"]
VALUES: dict[str, NDArray[Any]] = {
    "image_id": np.array(IDS, object),
    "width": np.array([10, 20, 0]),
    "height": np.array([5, 40, 0]),
    "quarantined": np.array([False, False, True]),
}


def matches(expression: str) -> list[bool]:
    columns = {name: partial(VALUES.__getitem__, name) for name in VALUES}
    return [bool(holds) for holds in matching_rows(expression, columns, 3)]


@pytest.mark.parametrize(
    "expression",
    [
        "width > 5",
        "not quarantined",
        "image_id == 'vg:2'",
        "image_id in ('vg:2', 'x')",
        "width not in [10]",
        "image_id.startswith('coco:') and not quarantined",
        "image_id.endswith('3') or height % 2 == 1",
        "5 < width < 15 or quarantined",
        "image_id < 'd'",
        "-width < -15",
        "width * 2 + height // 3 - 1 >= 20",
        "quarantined == True",
        "not (width == 10 and height == 5)",
        "True",
        "1 < 2 < 3",
        " width != 10 ",
    ],
)
def test_an_expression_holds_where_python_says_so(expression: str) -> None:
    rows = [
        dict(zip(VALUES, row, strict=True))
        for row in zip(*(v.tolist() for v in VALUES.values()), strict=True)
    ]
    assert matches(expression) == [bool(eval(expression.strip(), {}, row)) for row in rows]


def test_a_ratio_without_size_holds_nowhere() -> None:
    assert matches("width / height >= 0 or width / height < 0") == [True, True, False]


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("width", "it gives no truth value"),
        ("widht > 3", "there is no column 'widht'"),
        ("width >", "it is no expression"),
        ("", "it is no expression"),
        ("width == 'a'", "'width' is compared with another kind of value"),
        ("image_id > 5", "'image_id' is compared with another kind of value"),
        ("width in ('a',)", "'width' is compared with another kind of value"),
        ("width in 5", "'5' is no list of values"),
        ("width is 5", "'width is 5' is not understood"),
        ("width and True", "'width' is no truth value"),
        ("image_id + 'a' == 'b'", "'image_id' is no number"),
        ("image_id % 3 == 'b'", "'image_id' is no number"),
        ("-image_id == 'b'", "its parts do not fit together"),
        ("width.startswith('1')", "needs a column of texts and one text"),
        ("image_id.startswith('a', 1)", "needs a column of texts and one text"),
        ("width ** 9 > 1", "is not understood"),
        ("f'{width}' == '1'", "is not understood"),
        ("@width > 1", "it is no expression"),
        ("image_id.__class__", "is not understood"),
        ("(lambda: 1)() == 1", "is not understood"),
        ("__import__('os').getcwd() == ''", "is not understood"),
        ("[x for x in (1,)] == width", "is not understood"),
        ("(" * 300 + "width" + ")" * 300, "it is no expression"),
        ("not " * 3000 + "quarantined", "its parts do not fit together|it is no expression"),
    ],
)
def test_whatever_is_outside_the_grammar_is_refused(expression: str, reason: str) -> None:
    with pytest.raises(UsageError, match=rf"^--where .*({reason})"):
        matches(expression)


def test_a_method_that_writes_a_file_is_not_run(tmp_path: Path) -> None:
    """pandas' query would."""
    with pytest.raises(UsageError, match="is not understood"):
        matches(f"image_id.tofile({str(tmp_path / 'file')!r}) == 1")
    assert not any(tmp_path.iterdir())


WORDS = r"""width image_id quarantined 1 0.5 'a' ( ) [ ] , == < - / % ** . and or not in is if else lambda
    startswith endswith __class__ \ { @ :="""


@given(st.lists(st.sampled_from(WORDS.split()), max_size=9).map(" ".join))
def test_any_words_give_an_answer_or_one_clear_error(expression: str) -> None:
    with contextlib.suppress(UsageError):
        assert len(matches(expression)) == 3
