"""The language in which a study states its claims, so that a report can check them on the runs' figures.

    train_seconds[linear_p05] / train_seconds[constant] <= 0.80
    error[stochastic] < error[constant]
    error[fractalnet.deepest_column] - error[fractalnet] <= 0.02
    log10(history('gradient/001', 1)[plain_56] / history('gradient/001', 1)[plain_20]) < 0

A quantity is `figure[variant]`, or `figure[variant.part]` for a part of a net that is tested on its own. Figures are a
test metric, `error` (1 - accuracy), a cost (`parameters`, `macs`, `weight_megabytes`, `activation_bytes`), a time
(`train_seconds`, `test_seconds`, `latency_seconds`), `latency` and `training_step`, which `convatlas measure
record=true` takes with the study's nets in turns, or `history(column, epoch)` with epochs from 1, or from -1 at the
end. Quantities and numbers are joined by + - * / and parentheses; `log10(...)` is for what differs by orders of
magnitude. One comparison makes a claim.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from convatlas.core.errors import UserError

__all__ = ["Comparison", "Quantity", "read_claim"]

ARITHMETIC: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
COMPARISONS: Mapping[type[ast.cmpop], str] = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}


@dataclass(frozen=True)
class Quantity:
    """One figure of one variant.

    Attributes:
        figure: its name; `history` for a column of the learning curves.
        variant: the variant's key.
        part: a part of its net that is tested on its own, or None.
        column: of `history`.
        epoch: of `history`, from 1, or from -1 at the end.
    """

    figure: str
    variant: str
    part: str | None = None
    column: str | None = None
    epoch: int | None = None


@dataclass(frozen=True)
class Comparison:
    """A claim that can be checked: `left relation right`."""

    text: str
    left: ast.expr
    relation: str
    right: ast.expr

    def quantities(self) -> list[Quantity]:
        """Return the quantities of both sides, each once, from left to right."""
        found = [_quantity(node) for side in (self.left, self.right) for node in _subscripts(side)]
        return list(dict.fromkeys(found))

    @property
    def right_is_a_number(self) -> bool:
        """Whether the right side needs no measurement."""
        return not _subscripts(self.right)

    @property
    def is_linear(self) -> bool:
        """Whether both sides are sums and differences of quantities, or of numbers."""
        return all(map(_is_linear, (self.left, self.right)))

    def slopes(self, values: Mapping[Quantity, float]) -> dict[Quantity, float]:
        """Return by how much left side less right side changes with each quantity, at these values."""
        slopes = {}
        for quantity, value in values.items():
            step = 1e-5 * max(abs(value), 1e-3)
            ends = [self.sides({**values, quantity: value + change}) for change in (step, -step)]
            slopes[quantity] = ((ends[0][0] - ends[0][1]) - (ends[1][0] - ends[1][1])) / (2 * step)
        return slopes

    def sides(self, values: Mapping[Quantity, float]) -> tuple[float, float]:
        """Compute both sides; a division by zero gives infinity."""
        return _value(self.left, values), _value(self.right, values)


def read_claim(text: str, where: str) -> Comparison:
    """Read a claim.

    Args:
        text: the claim.
        where: what holds it, for the message.

    Raises:
        UserError: it is not of the form that the head of this file describes.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Compare) or len(node.ops) != 1 or type(node.ops[0]) not in COMPARISONS:
            raise _WrongClaimError("one comparison with <, <=, > or >= is needed")
        claim = Comparison(text, node.left, COMPARISONS[type(node.ops[0])], node.comparators[0])
        _check(claim.left)
        _check(claim.right)
        if not claim.quantities():
            raise _WrongClaimError("it names no variant; write figure[variant]")
    except SyntaxError as error:
        raise UserError(f"{where}: the claim {text!r} cannot be read: {error.msg}.") from error
    except _WrongClaimError as error:
        raise UserError(f"{where}: the claim {text!r} cannot be read: {error}.") from error
    return claim


class _WrongClaimError(Exception):
    """What is wrong with a claim."""


def _check(node: ast.expr) -> None:
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        _check(node.left)
        _check(node.right)
    elif isinstance(node, ast.Subscript):
        _quantity(node)
    elif (inner := _logarithm(node)) is not None:
        _check(inner)
    elif _number(node) is None:
        raise _WrongClaimError(f"{ast.unparse(node)} is neither a number nor figure[variant]")


def _logarithm(node: ast.expr) -> ast.expr | None:
    """Return what `log10` is taken of; None for anything else."""
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "log10"
    return node.args[0] if is_call and len(node.args) == 1 and not node.keywords else None  # type: ignore[attr-defined]


def _number(node: ast.expr) -> float | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _number(node.operand)
        return None if value is None else -value
    is_number = isinstance(node, ast.Constant) and isinstance(node.value, (int, float))
    return float(node.value) if is_number else None  # type: ignore[attr-defined]


def _is_linear(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, (ast.Add, ast.Sub)) and _is_linear(node.left) and _is_linear(node.right)
    return isinstance(node, ast.Subscript) or _number(node) is not None


def _subscripts(node: ast.expr) -> list[ast.Subscript]:
    if isinstance(node, ast.BinOp):
        return _subscripts(node.left) + _subscripts(node.right)
    if (inner := _logarithm(node)) is not None:
        return _subscripts(inner)
    return [node] if isinstance(node, ast.Subscript) else []


def _quantity(node: ast.Subscript) -> Quantity:
    variant, part = _variant(node.slice)
    if isinstance(node.value, ast.Name):
        return Quantity(node.value.id, variant, part)
    call = node.value
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "history":
        column, epoch = [*call.args, None, None][:2]
        number = None if epoch is None else _number(epoch)
        if isinstance(column, ast.Constant) and isinstance(column.value, str) and number and number == int(number):
            return Quantity("history", variant, part, column.value, int(number))
        raise _WrongClaimError("history takes a column and an epoch: history('train/loss', 1)[variant]")
    raise _WrongClaimError(f"{ast.unparse(node.value)} is not the name of a figure")


def _variant(node: ast.expr) -> tuple[str, str | None]:
    if isinstance(node, ast.Name):
        return node.id, None
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.value.id, node.attr
    raise _WrongClaimError(f"[{ast.unparse(node)}] is not [variant] or [variant.part]")


def _value(node: ast.expr, values: Mapping[Quantity, float]) -> float:
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, values), _value(node.right, values)
        if isinstance(node.op, ast.Div) and right == 0:
            return float("inf")
        return ARITHMETIC[type(node.op)](left, right)
    if isinstance(node, ast.Subscript):
        return values[_quantity(node)]
    if (inner := _logarithm(node)) is not None:
        value = _value(inner, values)
        return math.log10(value) if value > 0 else -math.inf
    number = _number(node)
    assert number is not None
    return number
