"""Quantizes models with llama.cpp, in a child process, so that a crash of llama.cpp does not end this process.

The child is `python -m engine.quantization SOURCE TARGET KIND THREADS`. It prints one JSON message per line.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from engine.child import environment, module_command
from engine.errors import EngineError, QuantizeError
from engine.llama import quantize as run_llama

_TENSOR: Final = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_FALLBACK: Final = re.compile(r"falling back to\s+(\w+)")


class Kind(msgspec.Struct, frozen=True):
    """A precision: its number in llama.cpp, and its approximate bits per weight."""

    ftype: int
    bits: float


# Without the precisions that need an importance matrix or other processors.
QUANTIZATIONS: Final = {
    "f16": Kind(1, 16),
    "bf16": Kind(32, 16),
    "q8_0": Kind(7, 8.5),
    "q6_k": Kind(18, 6.6),
    "q5_k_m": Kind(17, 5.7),
    "q5_k_s": Kind(16, 5.5),
    "q5_1": Kind(9, 6),
    "q5_0": Kind(8, 5.5),
    "q4_k_m": Kind(15, 4.9),
    "q4_k_s": Kind(14, 4.6),
    "q4_1": Kind(3, 5),
    "q4_0": Kind(2, 4.5),
    "iq4_nl": Kind(25, 4.5),
    "iq4_xs": Kind(30, 4.3),
    "q3_k_l": Kind(13, 3.9),
    "q3_k_m": Kind(12, 3.7),
    "q3_k_s": Kind(11, 3.4),
    "q2_k": Kind(10, 2.9),
}


# Precisions that llama.cpp can read, but that are not offered here.
_OTHERS: Final = {
    "f32": Kind(0, 32), "iq2_xxs": Kind(19, 2.1), "iq2_xs": Kind(20, 2.3), "q2_k_s": Kind(21, 2.6),
    "iq3_xs": Kind(22, 3.3), "iq3_xxs": Kind(23, 3.1), "iq1_s": Kind(24, 1.6), "iq3_s": Kind(26, 3.4),
    "iq3_m": Kind(27, 3.7), "iq2_s": Kind(28, 2.5), "iq2_m": Kind(29, 2.7), "iq1_m": Kind(31, 1.8),
    "tq1_0": Kind(36, 1.7), "tq2_0": Kind(37, 2.1), "mxfp4": Kind(38, 4.3), "nvfp4": Kind(39, 4.5),
}  # fmt: skip
_NAMES: Final = {kind.ftype: name for name, kind in (QUANTIZATIONS | _OTHERS).items()}
_GUESSED: Final = 1024
"""Offset that llama.cpp adds to the number when the file does not state it."""


def precision(file_type: str | None) -> str | None:
    """Return the name of a value of `general.file_type`; None if it is missing or unknown."""
    if file_type is None or not file_type.isdecimal():
        return None
    return _NAMES.get(int(file_type) % _GUESSED)


def bits(file_type: str | None) -> float | None:
    """Return the approximate bits per weight for a value of `general.file_type`; None if it is missing or unknown."""
    name = precision(file_type)
    return None if name is None else (QUANTIZATIONS | _OTHERS)[name].bits


class Tensor(msgspec.Struct, tag="tensor"):
    """The child starts with tensor `number` of `total`."""

    number: int
    total: int


class Fallback(msgspec.Struct, tag="fallback"):
    """A tensor has rows that do not fit the requested precision, and is written as `kind` instead."""

    kind: str


class Failed(msgspec.Struct, tag="failed"):
    """The quantization failed."""

    reason: str


_Message = Tensor | Fallback | Failed


def quantize(
    source: Path, target: Path, kind: str, *, threads: int, progress: Callable[[int, int], None]
) -> Counter[str]:
    """Write the weights of `source` as `kind` to `target`. `progress` gets the number of each tensor and their total.

    Returns how many tensors have another precision because their rows don't fit, by precision. Raises QuantizeError
    after deleting `target`.
    """
    command = module_command("engine.quantization", str(source), str(target), kind, str(threads))
    fallbacks: Counter[str] = Counter()
    failure = ""
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        env=environment(),
    )  # fmt: skip
    complete = False
    try:
        for line in child.stdout or ():
            match msgspec.json.decode(line, type=_Message):
                case Tensor(number=number, total=total):
                    progress(number, total)
                case Fallback(kind=other):
                    fallbacks[other] += 1
                case Failed(reason=reason):
                    failure = reason
        complete = child.wait() == 0
    finally:
        child.kill()
        child.communicate()
        if not complete:
            target.unlink(missing_ok=True)
    if not complete:
        code = child.returncode
        ended = f"the process ended with {signal.Signals(-code).name}" if code < 0 else "the process failed"
        raise QuantizeError(f"{source.name} can't be quantized: {failure or ended}")
    return fallbacks


def _print(message: _Message) -> None:
    try:
        sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:  # the parent has ended; ctypes ignores exceptions in llama.cpp's callback
        os._exit(1)


def _parse(text: str) -> None:
    """Print the message for a line of llama.cpp's log, if it has one."""
    if tensor := _TENSOR.search(text):
        _print(Tensor(int(tensor[1]), int(tensor[2])))
    if fallback := _FALLBACK.search(text):
        _print(Fallback(fallback[1].lower()))


def main(argv: list[str]) -> int:
    """Quantize the file of the command line, and print messages."""
    source, target, kind, threads = argv[1:]
    try:
        run_llama(Path(source), Path(target), QUANTIZATIONS[kind].ftype, threads=int(threads), log=_parse)
    except EngineError as error:
        _print(Failed(str(error)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
