"""Limits on the resources of child processes that read files and requests from outside."""

from __future__ import annotations

import resource


def limit(kind: int, most: int) -> None:
    """Limit resource `kind` (`resource.RLIMIT_…`) of this process to at most `most`; it cannot be raised again."""
    hard = resource.getrlimit(kind)[1]
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (value, value))
