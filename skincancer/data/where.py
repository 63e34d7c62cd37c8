"""Condition on the columns of a table (`data.where`), as in `DataFrame.query`.

The condition comes from a configuration file that others may have written. Therefore its syntax is checked first: it
contains columns, constants, comparisons and logical operators, but no calls, attributes or local variables.

The import of pandas is inside a function, because the configuration check imports this module.
"""

from __future__ import annotations

import ast
import io
import re
from typing import TYPE_CHECKING

from skincancer.errors import ConfigError, nearest

if TYPE_CHECKING:
    import pandas as pd

_ALLOWED = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.Invert, ast.USub, ast.BinOp, ast.BitAnd, ast.BitOr,
    ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.Name, ast.Load, ast.List, ast.Tuple,
)  # fmt: skip
_LONGEST = 2000


class _Columns(ast.NodeTransformer):
    """Replace column names by safe ones, and collect the columns.

    Args:
        quoted: columns that the condition contains between backticks.
    """

    def __init__(self, quoted: list[str]) -> None:
        self.safe = {f"quoted{number}": name for number, name in enumerate(quoted)}
        self.columns: dict[str, str] = {}

    def visit_Name(self, node: ast.Name) -> ast.Name:
        """Rename a column."""
        column = self.safe.get(node.id, node.id)
        return ast.Name(self.columns.setdefault(column, f"column{len(self.columns)}"), node.ctx)


def parse_where(where: str) -> tuple[str, dict[str, str]]:
    """Check the syntax of a condition.

    Returns:
        The condition with safe names of columns, and the safe name of each column.

    Raises:
        ConfigError: the condition has another syntax.
    """
    quoted: list[str] = []

    def stand_in(match: re.Match[str]) -> str:
        quoted.append(match[1])
        return f" quoted{len(quoted) - 1} "

    try:
        if len(where) > _LONGEST:
            raise ValueError(f"more than {_LONGEST} characters")
        tree = ast.parse(re.sub(r"`([^`]*)`", stand_in, where).strip(), mode="eval")
        for node in ast.walk(tree):
            constant = isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float))
            if not isinstance(node, _ALLOWED) and not constant:
                raise ValueError(f"{ast.unparse(node)} is no column, constant, comparison, and, or, not")
        columns = _Columns(quoted)
        return ast.unparse(columns.visit(tree)), columns.columns
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ConfigError(
            f"data.where is {where[:200]!r}; expected a condition such as \"image_type == 'dermoscopic' and age >= 18\" ({reason}). Put "
            "texts into quotes, and column names with blanks into backticks."
        ) from error


def select_rows(table: pd.DataFrame, where: str, source: str) -> pd.DataFrame:
    """Return the rows of a table that fulfil a condition.

    Cells are numbers, booleans and missing values where `pandas.read_csv` reads them as such.

    Args:
        source: name of the table, for messages.

    Raises:
        ConfigError: the syntax is wrong, a column is missing, the result is no truth value per row, or no row is left.
    """
    import pandas as pd

    condition, columns = parse_where(where)
    for name in columns:
        if name not in table:
            raise ConfigError(
                f"data.where is {where!r}; {source} has no column {name!r}.{nearest(name, map(str, table.columns))} Use its columns "
                f"{', '.join(map(str, table.columns))}."
            )
    if not columns:
        raise ConfigError(
            f"data.where is {where!r}; expected a condition with a column of {', '.join(map(str, table.columns))}."
        )
    texts = table[list(columns)].set_axis(list(columns.values()), axis=1)
    cells = pd.read_csv(io.StringIO(texts.to_csv(index=False)), low_memory=False, skip_blank_lines=False)
    try:
        rows = cells.eval(condition, engine="python")
    # pandas documents no exceptions: a text that is compared with a number is one of several.
    except Exception as error:
        kinds = ", ".join(f"{name} ({cells[safe].dtype})" for name, safe in columns.items())
        raise ConfigError(
            f"data.where is {where!r}, which cannot be evaluated: {error}. The columns are {kinds}."
        ) from error
    if not isinstance(rows, pd.Series) or rows.dtype != bool:
        raise ConfigError(
            f"data.where is {where!r}; expected a comparison, such as \"{next(iter(columns))} == 'text'\"."
        )
    if not rows.any():
        values = "; ".join(f"{name}: {', '.join(map(str, cells[safe].unique()[:8]))}" for name, safe in columns.items())
        raise ConfigError(
            f"data.where is {where!r}; none of the {len(table)} rows of {source} fulfils it. Some values: {values}."
        )
    return table[rows.to_numpy()]
