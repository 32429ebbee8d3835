"""exp and its kin on vectors, without a branch or a call: for use inside numba kernels.

Relative errors are a few eps. Results below the smallest normal number are zero, those within a factor
sqrt(2) of the largest may be infinite; NaN and infinity behave as in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from mambakit.kernels.vector import LANES, Expression, to_expression

# 2^f on [-1/2, 1/2]: minimax with the constant term 1 in float32, Taylor in float64
_EXP2_32 = (
    1.0,
    0.6931471824645996,
    0.24022647738456726,
    0.055503323674201965,
    0.00961843691766262,
    0.0013398875016719103,
    0.00015353361959569156,
)
_EXP2_64 = tuple(math.log(2) ** k / math.factorial(k) for k in range(14))
_LOG2E = math.log2(math.e)
# ln(2) in two parts, the first short enough that its integer multiples are exact
_LN2_PARTS = {32: (0.693359375, -2.12194440e-4), 64: (6.93147180369123816490e-01, 1.90821492927058770002e-10)}


def _polynomial(x: Expression, coefficients: tuple[float, ...]) -> Expression:
    value = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        value = value * x + coefficient
    return value


def _round_and_scale(y: Expression) -> tuple[Expression, Expression]:
    """The integer next to ``y``, as a float, and two to that power."""
    fraction_bits, bias = (23, 127) if y.bits == 32 else (52, 1023)
    # adding 1.5 * 2^fraction_bits rounds y to an integer, which then sits in the lowest bits
    magic = 1.5 * 2.0**fraction_bits + bias
    shifted = y + magic
    integers = shifted.integer()
    places = ir.Constant(integers.type, [fraction_bits] * LANES)
    scale = y.floating(y.builder.shl(integers, places))
    return shifted - magic, scale


def _exp2(y: Expression) -> Expression:
    # at the bounds the scale is exactly zero, or infinite
    y = y.clamp(-127.0, 128.0) if y.bits == 32 else y.clamp(-1023.0, 1024.0)
    rounded, scale = _round_and_scale(y)
    return _polynomial(y - rounded, _EXP2_32 if y.bits == 32 else _EXP2_64) * scale


def _exp(x: Expression) -> Expression:
    limit = 127.0 if x.bits == 32 else 1023.0
    x = x.clamp(-limit / _LOG2E, (limit + 1) / _LOG2E)
    rounded, scale = _round_and_scale(x * _LOG2E)
    high, low = _LN2_PARTS[x.bits]
    rest = (x - rounded * high) - rounded * low
    return _polynomial(rest * _LOG2E, _EXP2_32 if x.bits == 32 else _EXP2_64) * scale


def _exp_minus_abs(x: Expression) -> Expression:
    return _exp(x.where(">", 0.0, 0.0 - x, x))


def _sigmoid(x: Expression) -> Expression:
    small = _exp_minus_abs(x)
    upper = 1.0 / (small + 1.0)
    return x.where("<", 0.0, small * upper, upper)


def _softplus(x: Expression) -> Expression:
    """``max(x, 0) + log1p(exp(-|x|))``; log1p(e) as 2 artanh(e / (2 + e)), whose argument is at most 1/3."""
    small = _exp_minus_abs(x)
    s = small / (small + 2.0)
    terms = 8 if x.bits == 32 else 17
    series = _polynomial(s * s, tuple(2.0 / (2 * k + 1) for k in range(terms)))
    return x.where("<", 0.0, 0.0, x) + s * series


def _unary(name: str, function: Callable[[Expression], Expression], doc: str) -> Any:
    def typed(typing: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return function(Expression(builder, args[0])).value

        return value(value), codegen

    typed.__name__ = typed.__qualname__ = name
    typed.__doc__ = doc
    return intrinsic(typed)


exp2 = _unary("exp2", _exp2, "``2 ** value`` of a Vector.")
exp = _unary("exp", _exp, "``e ** value`` of a Vector.")
sigmoid = _unary("sigmoid", _sigmoid, "``1 / (1 + exp(-value))`` of a Vector.")
softplus = _unary("softplus", _softplus, "``log(1 + exp(value))`` of a Vector.")


@intrinsic
def clamp(typing: Any, value: Any, low: Any, high: Any) -> Any:
    """A Vector between two numbers; NaN stays."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, a, b = (
            to_expression(context, builder, v, t, sig.args[0]) for v, t in zip(args, sig.args, strict=True)
        )
        return x.clamp(a, b).value

    return value(value, low, high), codegen


@intrinsic
def between(typing: Any, value: Any, low: Any, high: Any) -> Any:
    """One where ``low <= value <= high``, else zero."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, a, b = (
            to_expression(context, builder, v, t, sig.args[0]) for v, t in zip(args, sig.args, strict=True)
        )
        return x.where(">=", a, x.where("<=", b, 1.0, 0.0), 0.0).value

    return value(value, low, high), codegen
