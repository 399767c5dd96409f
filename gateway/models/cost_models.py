"""Measured plans in the state folder: by model, llama.cpp build, processor and cores."""

from __future__ import annotations

import contextlib
import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from engine import CostModel, build_features, heuristic, model_size
from gateway.config.files import write_private
from gateway.config.machine import processor
from gateway.config.settings import Settings
from gateway.models.digests import model_digest

_FOLDER: Final = "plans"


class Key(msgspec.Struct, frozen=True):
    """What step times depend on."""

    model: str
    """Digest of the model's files."""
    build: str
    processor: str
    cores: int

    @classmethod
    def of(cls, path: Path, settings: Settings) -> Key:
        """The key of a model file on this machine. Raises OSError."""
        build = f"{version('llama-cpp-python')} {' '.join(sorted(build_features()))}"
        return cls(model_digest(path, settings.state_dir), build, processor(), settings.cores)

    @property
    def file(self) -> str:
        """Its name in the folder of plans."""
        return f"{hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32]}.json"


class _Saved(msgspec.Struct, frozen=True):
    key: Key
    plan: CostModel


def planned(path: Path, settings: Settings) -> CostModel:
    """The plan that was measured for this model here, with as many engines as may run, else an ordinary machine's."""
    folder = settings.state_dir / _FOLDER
    if folder.is_dir():  # else the key, which takes reading the whole model, is of no use
        with contextlib.suppress(OSError, msgspec.MsgspecError):  # none, or one of another version: as good as none
            plan = msgspec.json.decode((folder / Key.of(path, settings).file).read_bytes(), type=_Saved).plan
            if plan.times[-1].engines >= settings.engine_count:  # else it can't tell whether more engines are better
                return plan
    return heuristic(model_size(path), settings.cores, settings.engine_count)


def save(plan: CostModel, path: Path, settings: Settings) -> Path:
    """Keep a measured plan; gives its file. Raises OSError."""
    folder = settings.state_dir / _FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = Key.of(path, settings)
    file = folder / key.file
    write_private(file, msgspec.json.format(msgspec.json.encode(_Saved(key, plan))))
    return file
