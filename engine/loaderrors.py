"""Explains in one line why llama.cpp could not load a model, from the errors that llama.cpp logs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_NO_MEMORY: Final = r"(?:unable to|failed to) allocate|insufficient memory|bad_alloc|Cannot allocate memory"
_MEANINGS: Final = (
    (r"failed to open GGUF file '.*' \((.*)\)", r"it can't be opened: \1"),
    (r"invalid magic characters", "it is not a GGUF file"),
    (r"GGUFv1 is no longer supported", "it is GGUF version 1, which llama.cpp no longer reads: convert it again"),
    (
        r"this GGUF file is version (\d+) but this software only supports up to version (\d+)",
        r"it is GGUF version \1, and this llama.cpp reads versions up to \2: update Samovar",
    ),
    (r"version \d+ is extremely large|bad GGUF version", "its GGUF version is impossible: it is damaged or big-endian"),
    (
        r"unknown model architecture: '(.*)'",
        r"this llama.cpp does not know its architecture '\1': update Samovar, or use another model",
    ),
    (r"unknown pre-tokenizer type: '(.*)'", r"this llama.cpp does not know its tokenizer '\1': update Samovar"),
    (
        r"encountered (?:bad_alloc|length_error) error while reading",
        "it is damaged, or there is not enough memory to read it",
    ),
    (
        r"failed to read (magic|header|key-value pairs|tensor info|tensor data)|remaining file size|the file bounds",
        "it is incomplete or damaged: download it again",
    ),
    (
        r"illegal split file idx: (\d+)",
        "it is not the first part of its split model: name the one with -00001-of-",
    ),
    (r"invalid split file name", "it is the first part of a split model, and must keep its name NAME-00001-of-N.gguf"),
    (_NO_MEMORY, "there is not enough memory: raise the memory limit, or use a smaller model"),
)
"""Patterns of the messages of llama-cpp-python 0.3.36, in order of precedence, with their meanings."""
_SHARD: Final = re.compile(r"failed to load GGUF split from (?:.*/)?(.*)")
"""Matches the name of the shard that caused the error, if it is not the first."""
_PREFIX: Final = re.compile(r"^(?:\w+: )?(?:error loading model(?: \w+)?: )*")
"""Matches the name of the logging function, and llama.cpp's prefix of exception messages."""


def reason(path: Path, errors: Sequence[str]) -> str:
    """Return why `path` could not be loaded. `errors` are llama.cpp's log lines of the level ERROR, the cause first."""
    try:
        if path.stat().st_size == 0:
            return "it is empty: download it again"
    except OSError as error:
        return f"it can't be opened: {error.strerror}"
    shard = next((match[1] for line in errors if (match := _SHARD.search(line))), "")
    return f"{shard}: {_cause(errors)}" if shard else _cause(errors)


def _cause(errors: Sequence[str]) -> str:
    for pattern, meaning in _MEANINGS:
        for line in errors:
            if match := re.search(pattern, line):
                return match.expand(meaning)
    return _first(errors)


def context_reason(errors: Sequence[str]) -> str:
    """Return why no context could be created for a loaded model."""
    if any(re.search(_NO_MEMORY, line) for line in errors):
        return "there is not enough memory: set a smaller context or engine_memory, or raise the memory limit"
    return _first(errors)


def _first(errors: Sequence[str]) -> str:
    """Return the cause in llama.cpp's own words."""
    lines = [text for line in errors if (text := " ".join(_PREFIX.sub("", line.strip()).split()))]
    return lines[0][:300] if lines else "llama.cpp gives no reason"
