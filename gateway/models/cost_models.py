"""Measured cost models, stored in the state folder by model, llama.cpp build, processor and cores."""

from __future__ import annotations

import contextlib
import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

import engine
from engine import CostModel, heuristic, model_size
from gateway.config.files import write_private
from gateway.config.machine import processor
from gateway.config.settings import Settings
from gateway.models.digests import model_digest

_FOLDER: Final = "plans"


class Key(msgspec.Struct, frozen=True):
    """Everything that step times depend on."""

    model: str
    """Digest of the model's files."""
    build: str
    processor: str
    cores: int

    @classmethod
    def of(cls, path: Path, settings: Settings) -> Key:
        """Return the key of a model file on this machine. Raises OSError."""
        features = engine.build_features()  # loads llama.cpp, which a gateway without a measured plan never needs
        build = f"{version('llama-cpp-python')} {' '.join(sorted(features))}"
        return cls(model_digest(path, settings.state_dir), build, processor(), settings.cores)

    @property
    def file(self) -> str:
        """Name of the cost model's file."""
        return f"{hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32]}.json"


class _Saved(msgspec.Struct, frozen=True):
    key: Key
    plan: CostModel


def planned(path: Path, settings: Settings) -> CostModel:
    """Return the cost model measured here for all engines that may run, else an estimate for an ordinary machine."""
    folder = settings.state_dir / _FOLDER
    if folder.is_dir():  # else do not compute the key, which reads the whole model file
        with contextlib.suppress(OSError, msgspec.MsgspecError):  # there is none, or one of another version
            plan = msgspec.json.decode((folder / Key.of(path, settings).file).read_bytes(), type=_Saved).plan
            if plan.times[-1].engines >= settings.engine_count:  # else more engines were not measured
                return plan
    return heuristic(model_size(path), settings.cores, settings.engine_count)


def save(plan: CostModel, path: Path, settings: Settings) -> Path:
    """Store a measured cost model and return its file. Raises OSError."""
    folder = settings.state_dir / _FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = Key.of(path, settings)
    file = folder / key.file
    write_private(file, msgspec.json.format(msgspec.json.encode(_Saved(key, plan))))
    return file
