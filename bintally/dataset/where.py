"""Which samples of a dataset are meant: an expression over the columns of its catalog."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bintally.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc

__all__ = ["select"]


def select(table: pa.Table, where: str) -> pa.Table:
    """The rows of a catalog for which `where` is true.

    It is written as in Python: comparisons of columns, numbers and texts (`count <= 3`,
    `1 <= count <= 4`, `group == "00017"`, `count in (0, 5)`), arithmetic (`width > 2 * height`),
    `and`, `or`, `not`. Where a value is missing, a comparison is not true. Nothing in it is
    executed. Raises `UsageError`, naming what is wrong, for what is no such expression.
    """
    import pyarrow as pa

    try:
        tree = ast.parse(where.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refusal(where, f"is no expression: {getattr(error, 'msg', error)}") from error
    columns = {name: table.schema.field(name).type for name in table.column_names}
    try:
        condition = _Translation(where, columns).of(tree)
        return table.filter(condition)
    except (pa.ArrowException, OverflowError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise _refusal(where, f"does not fit the columns: {reason}") from error


def _refusal(where: str, reason: str) -> UsageError:
    return UsageError(f"where {where!r}: {reason}")


class _Translation:
    """Python's syntax as an expression of Arrow's."""

    def __init__(self, where: str, columns: dict[str, pa.DataType]) -> None:
        self._where, self._columns = where, columns

    def of(self, node: ast.expr) -> pc.Expression:
        import pyarrow.compute as pc

        match node:
            case ast.BoolOp(ast.And(), values):
                return _fold(lambda a, b: a & b, [self.of(value) for value in values])
            case ast.BoolOp(ast.Or(), values):
                return _fold(lambda a, b: a | b, [self.of(value) for value in values])
            case ast.UnaryOp(ast.Not(), operand):
                return ~self.of(operand)
            case ast.UnaryOp(ast.USub(), operand):
                return pc.scalar(0) - self.of(operand)
            case ast.BinOp(left, operator, right) if type(operator) in ARITHMETIC:
                return ARITHMETIC[type(operator)](self.of(left), self.of(right))
            case ast.Compare(left, operators, rights):
                sides = [left, *rights]
                pairs = zip(sides[:-1], operators, sides[1:], strict=True)
                return _fold(lambda a, b: a & b, [self._compare(*pair) for pair in pairs])
            case ast.Name(name):
                return self._column(name)
            case ast.Constant(value) if isinstance(value, bool | int | float | str):
                return pc.scalar(value)
        raise self._unknown(node)

    def _compare(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> pc.Expression:
        if type(operator) in COMPARISONS:
            return COMPARISONS[type(operator)](self.of(left), self.of(right))
        if isinstance(operator, ast.In | ast.NotIn) and isinstance(
            right, ast.Tuple | ast.List | ast.Set
        ):
            values = [e.value for e in right.elts if isinstance(e, ast.Constant)]
            if values and len(values) == len(right.elts):
                column = self.of(left)
                found = column.isin(values)
                # As with every comparison, what is missing is neither in nor not in.
                return found if isinstance(operator, ast.In) else ~found & column.is_valid()
        raise self._unknown(right)

    def _column(self, name: str) -> pc.Expression:
        import pyarrow as pa
        import pyarrow.compute as pc

        if name not in self._columns:
            there = ", ".join(self._columns)
            raise _refusal(self._where, f"the catalog has no column {name!r}; it has {there}")
        kind = self._columns[name]
        if pa.types.is_list(kind):
            raise _refusal(self._where, f"the column {name!r} is a list: nothing compares with it")
        # Names that come often are kept as numbers, which are not compared with texts.
        return pc.field(name).cast(pa.string()) if pa.types.is_dictionary(kind) else pc.field(name)

    def _unknown(self, node: ast.expr) -> UsageError:
        part = ast.unparse(node)
        return _refusal(
            self._where,
            f"{part!r} is no comparison of columns, numbers and texts, nor and, or, not of such",
        )


def _fold(join: Callable[[Any, Any], Any], parts: list[Any]) -> Any:
    joined, *rest = parts
    for part in rest:
        joined = join(joined, part)
    return joined


ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a.cast("float64") / b,
}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}
