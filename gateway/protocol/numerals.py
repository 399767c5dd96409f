"""Ranges of numbers as grammars: which digits may follow so that what is written lies between two bounds.

Bounds are kept by spelling: a rule lists, digit by digit, where a numeral leaves its lower bound and where it meets its
upper one; behind that all digits are free.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Final

DIGITS: Final = 15
"""Of a numeral in all: with no more of them, what a double makes of it is still on the same side of its bounds."""
_FRACTION: Final = 6
"""Digits behind the point, where the bounds have no more."""


def numerals(least: Decimal | None, most: Decimal | None, *, whole: bool, inside: tuple[bool, bool]) -> str | None:
    """The body of a rule for numerals from `least` to `most`, `whole` ones or with a fraction; None: there are none.

    `inside` tells for each bound whether it must not be met itself.
    """
    places = 0 if whole else _places(least, most)
    unit, end = Decimal(1).scaleb(-places), 10**DIGITS - 1
    if (least is not None and least > end) or (most is not None and most < -end):
        return None
    low = -end if least is None or least < -end else _scaled(least, unit, ROUND_CEILING, step=inside[0])
    high = end if most is None or most > end else _scaled(most, unit, ROUND_FLOOR, step=-inside[1])
    low, high = max(low, -end), min(high, end)
    parts = []
    if low < 0:
        parts += [f'"-" ({part})' for part in _magnitudes(max(1, -high), -low, places)]
    if high >= 0:
        parts += _magnitudes(max(0, low), high, places)
    return " | ".join(parts) or None


def _places(*bounds: Decimal | None) -> int:
    """Digits behind the point: as many as bounds have, and as leave room for those before it."""
    known = [bound for bound in bounds if bound is not None]
    before = max((max(0, bound.adjusted() + 1) for bound in known), default=0)
    behind = max((max(0, -int(bound.normalize().as_tuple().exponent)) for bound in known), default=0)
    return max(0, min(max(_FRACTION, behind), DIGITS - max(before + 1, 3)))


def _scaled(bound: Decimal, unit: Decimal, rounding: str, *, step: int) -> int:
    """A bound in units, rounded to its inner side; one further when it must not be met itself."""
    exact = bound / unit
    nearest = int(exact.to_integral_value(rounding=rounding))
    return nearest + step if nearest == exact else nearest


def _magnitudes(low: int, high: int, places: int) -> list[str]:
    """Bodies for numbers from `low` to `high` units, by how many digits they have before the point."""
    found = []
    for before in range(1, DIGITS + 1 - places):
        size = before + places
        first = max(low, 0 if before == 1 else 10 ** (size - 1))
        last = min(high, 10**size - 1)
        if first <= last:
            found.append(_between(f"{first:0{size}}", f"{last:0{size}}", before))
    return found


def _between(low: str, high: str, before: int) -> str:
    """Numerals from `low` to `high`, digits of equal number, of which `before` stand before the point."""
    if not low:
        return ""
    ends = before <= 0 and not low.strip("0")  # zeros behind the point need not be written
    if not low.strip("0") and not high.strip("9"):
        return _free(len(low), before)
    body = _digits(low, high, before - 1)
    point = '"." ' if before == 0 else ""
    return f"({point}{body})?" if ends else f"{point}{body}"


def _free(size: int, before: int) -> str:
    """Any digits."""
    whole = f"[0-9]{{{before}}} " if before > 0 else ""
    behind = size - max(0, before)
    if before < 0:
        return f"[0-9]{{0,{behind}}}"
    return f'{whole}("." [0-9]{{1,{behind}}})?' if behind else whole.rstrip()


def _digits(low: str, high: str, before: int) -> str:
    """One digit and what may follow it; `before` digits stand before the point behind this one."""
    start, stop, rest = low[0], high[0], len(low) - 1
    if start == stop:
        return f'"{start}" {_between(low[1:], high[1:], before)}'.rstrip()
    parts, least, most = [], int(start), int(stop)
    if low[1:].strip("0"):
        parts.append(f'"{start}" {_between(low[1:], "9" * rest, before)}'.rstrip())
        least += 1
    if high[1:].strip("9"):
        parts.append(f'"{stop}" {_between("0" * rest, high[1:], before)}'.rstrip())
        most -= 1
    if least <= most:
        parts.append(f"[{least}-{most}] {_between('0' * rest, '9' * rest, before)}".rstrip())
    return f"({' | '.join(parts)})"
