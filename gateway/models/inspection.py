"""Reads a model file in a child process with limited resources, so that no file can harm the gateway.

Run as a module, this is the child process. It loads the vocabulary, renders the chat template in every way that prompts
need, and writes a Description. A truncated, damaged or hostile file may crash, hang or exhaust the child; the caller
then gets a one-line error. The gateway itself never loads llama.cpp.
"""

from __future__ import annotations

import array
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from engine import ModelLoadError, environment, module_command, split_fault
from gateway.config.resource_limits import limit
from gateway.models.catalogue import SAMPLING_KEYS, ModelNotAvailableError
from gateway.models.token_table import TokenTable
from gateway.prompts.abilities import Abilities, trial
from gateway.prompts.chat_template import Prompt, TemplateError

if TYPE_CHECKING:
    from engine import Model, Vocabulary

SECONDS: Final = 20.0
"""Time limit of the child in seconds. A vocabulary of 152 000 tokens takes one second, or more on a busy machine."""
MEMORY: Final = 1 << 30
"""Bytes that the child may allocate. Weights are not read, and mapped files do not count."""


class Details(msgspec.Struct, frozen=True, kw_only=True):
    """What a model file states about the model, for people who choose one."""

    architecture: str
    parameters: int
    """Number of parameters."""
    quantization: str
    """Name of the type of most weights; empty if unknown."""


class Description(msgspec.Struct, frozen=True, kw_only=True, tag="description"):
    """The contents of a model file that the gateway needs, without weights."""

    tokens: TokenTable
    template: str
    """Jinja source of the chat template."""
    sampling: dict[str, str]
    """The file's metadata `general.sampling.*` by the last part of the key."""
    context_key: str
    """Metadata key of `trained_context`."""
    trained_context: int
    """Context length in tokens that the model was trained for; 0 if the file does not state it."""
    bytes_a_token: int
    """KV size of one token in bytes."""
    bytes_a_sequence: int
    """Size of one sequence's recurrent state in bytes."""
    has_blocks: bool
    """Whether the KV can be split into blocks."""
    details: Details
    abilities: Abilities
    """What the chat template can do."""
    features: frozenset[str]
    """The features that llama.cpp was compiled with."""


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    """The reason, in one line, why a file cannot be served."""

    kind: Literal["unreadable", "template", "no chat model"]
    reason: str

    def error(self) -> Exception:
        """Return the error to raise."""
        match self.kind:
            case "unreadable":
                return ModelLoadError(self.reason)
            case "template":
                return TemplateError(self.reason)
            case "no chat model":
                return ModelNotAvailableError(f"model: {self.reason}")


_decoder: Final[msgspec.msgpack.Decoder[Description | Fault]] = msgspec.msgpack.Decoder(Description | Fault)


def describe(model: Path) -> Description:
    """Return the description of `model`. Raises ModelLoadError, TemplateError or ModelNotAvailableError."""
    found = inspect(model)
    if isinstance(found, Fault):
        raise found.error()
    return found


def inspect(model: Path) -> Description | Fault:
    """Read `model` in a child process and return its description or a fault."""
    try:
        child = subprocess.run(
            module_command("gateway.models.inspection", str(model)), env=environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=SECONDS, start_new_session=True, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Fault("unreadable", f"{model.name} took longer than {SECONDS:.0f} s to open")
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        return Fault("unreadable", f"{model.name} is damaged or not a model: the process that opened it died of {name}")
    try:
        return _decoder.decode(child.stdout)
    except msgspec.MsgspecError:
        return Fault("unreadable", f"{model.name} is damaged or not a model: it could not be opened")


def _read(path: Path) -> Description | Fault:
    from engine import Model  # imported late: only the child loads llama.cpp

    try:
        if fault := split_fault(path):
            return Fault("unreadable", f"{path.name} can't be loaded: {fault}")
        model = Model(path, vocab_only=True)
        architecture = model.metadata("general.architecture")
        if model.metadata(f"{architecture}.pooling_type") not in (None, "0"):  # some have a chat template, too
            return Fault("no chat model", f"{path.name} is a model for embeddings or ranking, not a chat model")
        template = model.chat_template
        if template is None:
            return Fault("no chat model", f"{path.name} has no chat template: it is not a chat model")
        prompt = Prompt(template, model.vocabulary, mark=lambda: os.urandom(16).hex())
        message = [{"role": "user", "content": "x"}]
        prompt.whole(message, date=lambda _: "")
        prompt.follow_up(message, date=lambda _: "")
        return _description(model, template, trial(prompt))
    except (ModelLoadError, OSError) as error:
        return Fault("unreadable", str(error))
    except TemplateError as error:
        return Fault("template", " ".join(str(error).split())[:300])
    except (MemoryError, RecursionError, OverflowError) as error:
        return Fault("template", f"it exceeds the limits on memory or recursion ({type(error).__name__})")


def _description(model: Model, template: str, abilities: Abilities) -> Description:
    from engine import build_features, precision  # imported late: they load llama.cpp, too

    stated = {key: model.metadata(f"general.sampling.{key}") for key in SAMPLING_KEYS}
    return Description(
        tokens=_token_table(model.vocabulary),
        template=template,
        sampling={key: value for key, value in stated.items() if value is not None},
        context_key=model.dimensions.context_key,
        trained_context=model.dimensions.trained_context,
        bytes_a_token=model.dimensions.bytes_a_token,
        bytes_a_sequence=model.dimensions.bytes_a_sequence,
        has_blocks=model.has_blocks,
        details=Details(
            architecture=model.metadata("general.architecture") or "",
            parameters=model.parameters,
            quantization=(precision(model.metadata("general.file_type")) or "").upper(),
        ),
        abilities=abilities,
        features=build_features(),
    )


def _token_table(vocabulary: Vocabulary) -> TokenTable:
    pieces = [vocabulary.bare_piece(token) for token in range(vocabulary.size)]
    ends, end = array.array("I"), 0
    for piece in pieces:
        end += len(piece)
        ends.append(end)
    silent = {token: vocabulary.text(token) for token, piece in enumerate(pieces) if not piece}
    return TokenTable(digest=vocabulary.digest, pieces=b"".join(pieces), ends=ends.tobytes(), silent=silent)


def main(path: str) -> int:
    """Read the model file `path` under resource limits and write the result to stdout."""
    limit(resource.RLIMIT_DATA, MEMORY)
    limit(resource.RLIMIT_CPU, int(SECONDS))
    limit(resource.RLIMIT_CORE, 0)
    sys.stdout.buffer.write(msgspec.msgpack.encode(_read(Path(path))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
