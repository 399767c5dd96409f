"""A model file that was never seen before is opened in a limited child process first, so that none hurts the gateway.

Run as a module this is the child: vocabulary, and one rendering of the chat template each way that prompts need. It may
be crashed, hung or filled up by a truncated, damaged or hostile file; who asked gets one line.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

import msgspec

from engine import Model, ModelLoadError, environment, model_files, module_command, split_fault
from gateway.catalogue import ModelNotAvailableError
from gateway.files import write_private
from gateway.prompt import Prompt, TemplateError

FILE: Final = "inspected.json"
SECONDS: Final = 20.0
"""A vocabulary of 152 000 tokens takes half a second (facts.md); a loaded machine some more."""
MEMORY: Final = 1 << 30
"""Bytes that the child may allocate; weights are not read, and mapped files do not count."""
REMEMBERED: Final = 64
"""Files that are remembered as good."""


class Verdict(msgspec.Struct, frozen=True):
    """What came of looking at a file; a good one has no fault."""

    fault: Literal["", "unreadable", "template", "no chat model"] = ""
    reason: str = ""
    """One line."""


def require_good(model: Path, state: Path, *, remember: bool) -> None:
    """Look at `model`, unless the same file was found good before; `remember` in `state` that it is.

    Raises ModelLoadError, TemplateError or ModelNotAvailableError.
    """
    known, key, stamp = _known(state), str(model), _stamp(model)
    if known.get(key) == stamp:
        return
    verdict = inspect(model)
    match verdict.fault:
        case "unreadable":
            raise ModelLoadError(verdict.reason)
        case "template":
            raise TemplateError(verdict.reason)
        case "no chat model":
            raise ModelNotAvailableError(f"model: {verdict.reason}")
    if remember:
        known.pop(key, None)
        _remember(state, {**known, key: stamp})


def _known(state: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode((state / FILE).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError):
        return {}


def _remember(state: Path, known: dict[str, str]) -> None:
    newest = dict(list(known.items())[-REMEMBERED:])
    with contextlib.suppress(OSError):  # then it is looked at again
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(state / FILE, msgspec.json.encode(newest))


def inspect(model: Path) -> Verdict:
    """Look at `model` in a child process."""
    try:
        child = subprocess.run(
            module_command("gateway.inspection", str(model)), env=environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=SECONDS, start_new_session=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Verdict("unreadable", f"{model.name} took longer than {SECONDS:.0f} s to open")
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        return Verdict("unreadable", f"{model.name} is damaged or no model: opening it ended in {name}")
    try:
        return msgspec.json.decode(child.stdout, type=Verdict)
    except msgspec.MsgspecError:
        return Verdict("unreadable", f"{model.name} is damaged or no model: opening it failed")


def _stamp(model: Path) -> str:
    """What tells a model from another at the same path, and a build of llama.cpp from another."""
    marks = [file.stat() for file in model_files(model)]
    shown = (f"{mark.st_size} {mark.st_mtime_ns}" for mark in marks)
    return f"{' '.join(shown)} {metadata.version('llama-cpp-python')}"


def _look(path: Path) -> Verdict:
    try:
        if fault := split_fault(path):
            return Verdict("unreadable", f"{path.name} can't be loaded: {fault}")
        model = Model(path, vocab_only=True)
        template = model.chat_template
        if template is None:
            return Verdict("no chat model", f"{path.name} has no chat template, so it is no chat model")
        prompt = Prompt(template, model.vocabulary, mark=lambda: os.urandom(16).hex())
        message = [{"role": "user", "content": "x"}]
        prompt.whole(message, date=lambda _: "")
        prompt.follow_up(message, date=lambda _: "")
    except (ModelLoadError, OSError) as error:
        return Verdict("unreadable", str(error))
    except TemplateError as error:
        return Verdict("template", " ".join(str(error).split())[:300])
    except (MemoryError, RecursionError, OverflowError) as error:
        return Verdict("template", f"it asks for too much ({type(error).__name__})")
    return Verdict()


def main(path: str) -> int:
    """Look at `path` and print the verdict."""
    for limit, wanted in (
        (resource.RLIMIT_DATA, MEMORY),
        (resource.RLIMIT_CPU, int(SECONDS)),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(limit, (value, value))
    sys.stdout.buffer.write(msgspec.json.encode(_look(Path(path))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
