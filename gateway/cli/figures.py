"""Measured figures as text."""

from __future__ import annotations


def figure(value: float, digits: int = 0) -> str:
    """Return a figure with `digits` decimals, and at least one below 10, where rounding would hide over 5 %."""
    return f"{value:.{max(digits, 1) if 0 < value < 9.95 else digits}f}"
