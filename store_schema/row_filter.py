"""Choose pictures by an expression such as `width >= 300 and not image_id.startswith("coco:")`.

The grammar is a small part of Python's, evaluated here on whole columns: names of columns, numbers, texts, tuples of
them, `and or not`, comparisons (also chained, `in`, `not in`), `+ - * / // %`, and `.startswith(...)`, `.endswith(...)`
of a column of texts. Nothing else is run. (pandas' `query` would run `image_id.to_pickle("file")`.)
"""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store_schema.errors import UsageError

Columns = Mapping[str, Callable[[], NDArray[Any]]]

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def matching_rows(expression: str, columns: Columns, num_rows: int) -> NDArray[np.bool_]:
    """[num_rows] bool, where the expression holds.

    Args:
        columns: by name what gives a column [num_rows] of numbers, truth values or texts (object).

    Errors: `UsageError` that quotes the expression and says what in it is not understood.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise _refusal(expression, f"it is no expression ({error})", columns) from error
    try:
        with np.errstate(all="ignore"):  # 0 / 0 of a picture without size is no number, and compares as false
            result = np.asarray(_Evaluation(columns).value(tree))
    except _NotUnderstoodError as error:
        raise _refusal(expression, str(error), columns) from error
    except (TypeError, ValueError, RecursionError) as error:  # numpy's: a text compared with a number
        raise _refusal(expression, f"its parts do not fit together ({error})", columns) from error
    if result.dtype != np.bool_:
        raise _refusal(expression, "it gives no truth value", columns)
    return np.broadcast_to(result, (num_rows,))


class _NotUnderstoodError(Exception):
    """A part of an expression outside the grammar."""


class _Evaluation:
    """Values of the nodes of one expression."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    def value(self, node: ast.expr) -> Any:  # noqa: ANN401 - numbers, texts, tuples or columns of them
        match node:
            case ast.Constant(value=bool() | int() | float() | str()):
                return node.value
            case ast.Tuple() | ast.List():
                return [self.value(item) for item in node.elts]
            case ast.Name(id=name):
                return self._column(name)
            case ast.BoolOp():
                truths = [self._truth(item) for item in node.values]
                combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
                return combine.reduce(np.broadcast_arrays(*truths))
            case ast.UnaryOp(op=ast.Not()):
                return ~self._truth(node.operand)
            case ast.UnaryOp(op=ast.USub()):
                return -self.value(node.operand)
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                return _ARITHMETIC[type(node.op)](self._number(node.left), self._number(node.right))
            case ast.Compare():
                return self._compared(node)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="startswith" | "endswith")):
                return self._affix(node, name)
        raise _NotUnderstoodError(f"{ast.unparse(node)!r} is not understood")

    def _column(self, name: str) -> NDArray[Any]:
        if name not in self._columns:
            raise _NotUnderstoodError(f"there is no column {name!r}")
        return self._columns[name]()

    def _truth(self, node: ast.expr) -> NDArray[np.bool_]:
        value = np.asarray(self.value(node))
        if value.dtype != np.bool_:
            raise _NotUnderstoodError(f"{ast.unparse(node)!r} is no truth value")
        return value

    def _number(self, node: ast.expr) -> Any:  # noqa: ANN401 - a number or a column of numbers
        value = self.value(node)
        if np.asarray(value).dtype.kind not in "iuf":
            raise _NotUnderstoodError(f"{ast.unparse(node)!r} is no number")
        return value

    def _compared(self, node: ast.Compare) -> NDArray[np.bool_]:
        terms = [node.left, *node.comparators]
        result: NDArray[np.bool_] = np.asarray(True)
        for left, comparison, right in zip(terms, node.ops, terms[1:], strict=False):
            if isinstance(comparison, ast.In | ast.NotIn):
                among = self.value(right)
                if not isinstance(among, list):
                    raise _NotUnderstoodError(f"{ast.unparse(right)!r} is no list of values")
                holds = np.isin(self._same_kind(left, among), among)
                holds = ~holds if isinstance(comparison, ast.NotIn) else holds
            elif type(comparison) in _COMPARISONS:
                values = self.value(right)
                holds = np.asarray(_COMPARISONS[type(comparison)](self._same_kind(left, [values]), values))
            else:
                raise _NotUnderstoodError(f"{ast.unparse(node)!r} is not understood")
            result = np.asarray(result & holds)
        return result

    def _same_kind(self, node: ast.expr, others: list[Any]) -> Any:  # noqa: ANN401 - as `value`
        """The node's value, once it is sure that texts meet texts only: numpy would say 'unequal' without a word."""
        value = self.value(node)
        if len({_is_text(item) for item in [value, *others]}) > 1:
            raise _NotUnderstoodError(f"{ast.unparse(node)!r} is compared with another kind of value")
        return value

    def _affix(self, node: ast.Call, name: str) -> NDArray[np.bool_]:
        assert isinstance(node.func, ast.Attribute)
        column, affixes = self._column(name), [self.value(item) for item in node.args]
        if not _is_text(column) or len(affixes) != 1 or not isinstance(affixes[0], str) or node.keywords:
            raise _NotUnderstoodError(f"{ast.unparse(node)!r} needs a column of texts and one text")
        test = str.startswith if node.func.attr == "startswith" else str.endswith
        return np.fromiter((test(text, affixes[0]) for text in column), bool, len(column))


def _is_text(value: Any) -> bool:  # noqa: ANN401 - as `_Evaluation.value`
    return np.asarray(value).dtype.kind in "OU"


def _refusal(expression: str, reason: str, columns: Columns) -> UsageError:
    return UsageError(
        f"--where {expression!r}: {reason}; expected a condition on {', '.join(columns)}, such as "
        "'width >= 300 and num_regions > 0'"
    )
