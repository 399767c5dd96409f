"""Classifies why an engine process ended. Logs contain only the class, because its stderr may quote a prompt."""

from __future__ import annotations

import re
import signal
from typing import Final

_SIGNS: Final = (
    (re.compile(rb"GGML_ASSERT\(ctx->mem_buffer != NULL\)"), "out of memory"),
    (re.compile(rb"GGML_ASSERT|GGML_ABORT"), "an internal check of llama.cpp failed"),
    (re.compile(rb"bad_alloc|failed to allocate|MemoryError|out of memory|Cannot allocate"), "out of memory"),
    (re.compile(rb"Too many open files"), "too many open files"),
    (re.compile(rb"No space left on device"), "no space left on the disk"),
    (re.compile(rb"ModuleNotFoundError|ImportError|cannot open shared object"), "the installation is broken"),
    (re.compile(rb"^(\w+(?:Error|Exception))\b", re.MULTILINE), "internal error: {}"),
)  # fmt: skip
_SIGNALS: Final = {
    signal.SIGKILL: "killed from outside, by hand or for want of memory (SIGKILL)",
    signal.SIGSEGV: "crashed in llama.cpp (SIGSEGV)",
    signal.SIGILL: "built for another processor (SIGILL): run `make distclean` and install again",
    signal.SIGBUS: "its model file changed or its disk failed while mapped (SIGBUS)",
}


def cause_of_death(status: int | None, stderr: bytes) -> str:
    """Return the cause for the log and /readyz, from the exit status and the end of stderr of a process."""
    for sign, cause in _SIGNS:
        if found := sign.search(stderr):
            return cause.format(*(group.decode() for group in found.groups()))
    if status is None:
        return "no process could be started"
    if status < 0:
        name = signal.Signals(-status)
        return _SIGNALS.get(name, f"ended by {name.name}")
    return f"ended with status {status}"
