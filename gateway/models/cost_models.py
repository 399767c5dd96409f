"""Measured and learned cost models, stored in the state folder by model, llama.cpp build, processor and cores."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec
import structlog

import engine
from engine import CostModel, LearnedStep, heuristic, model_size
from gateway.config.files import write_private
from gateway.config.machine import processor
from gateway.config.settings import Settings
from gateway.models.digests import model_digest

_FOLDER: Final = "plans"
_LEARNED: Final = ".learned.json"
MAX_BYTES: Final = 1 << 20
"""Maximum size of a file with learned step times; 64 engines take a fifth of that."""
MAX_FILES: Final = 64
"""Maximum number of such files: of models, builds and processors; the oldest are deleted first."""

log = structlog.get_logger()


class Key(msgspec.Struct, frozen=True):
    """Everything that step times depend on."""

    model: str
    """Digest of the model's files."""
    build: str
    processor: str
    cores: int

    @classmethod
    def of(cls, path: Path, settings: Settings, features: Collection[str] | None = None) -> Key:
        """Return the key of a model file on this machine. Raises OSError.

        `features` are those of the llama.cpp build. Without them llama.cpp is loaded, which the gateway never does.
        """
        if features is None:
            features = engine.build_features()
        build = f"{version('llama-cpp-python')} {' '.join(sorted(features))}"
        return cls(model_digest(path, settings.state_dir), build, processor(), settings.cores)

    @property
    def name(self) -> str:
        """Name of the cost model's files, without their ending."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32]


class _Saved(msgspec.Struct, frozen=True):
    key: Key
    plan: CostModel


def planned(path: Path, settings: Settings, features: Collection[str] | None = None) -> CostModel:
    """Return the cost model measured here for all engines that may run, else an estimate for an ordinary machine."""
    folder = settings.state_dir / _FOLDER
    if folder.is_dir():  # else do not compute the key, which reads the whole model file
        with contextlib.suppress(OSError, msgspec.MsgspecError):  # there is none, or one of another version
            file = folder / f"{Key.of(path, settings, features).name}.json"
            plan = msgspec.json.decode(file.read_bytes(), type=_Saved).plan
            if plan.times[-1].engines >= settings.engine_count:  # else more engines were not measured
                return plan
    return heuristic(model_size(path), settings.cores, settings.engine_count)


def save(plan: CostModel, path: Path, settings: Settings) -> Path:
    """Store a measured cost model and return its file. Raises OSError."""
    folder = settings.state_dir / _FOLDER
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = Key.of(path, settings)
    file = folder / f"{key.name}.json"
    write_private(file, msgspec.json.format(msgspec.json.encode(_Saved(key, plan))))
    return file


class _Learned(msgspec.Struct, frozen=True):
    key: Key
    steps: list[LearnedStep]


@dataclass(frozen=True)
class LearnedFile:
    """The file with the step times that a gateway has learned with one model on this machine."""

    folder: Path
    key: Key

    @classmethod
    def of(cls, path: Path, settings: Settings, features: Collection[str] | None = None) -> LearnedFile:
        """Return the file of the model file `path`. See Key.of. Raises OSError."""
        return cls(settings.state_dir / _FOLDER, Key.of(path, settings, features))

    @property
    def path(self) -> Path:
        """The file's path."""
        return self.folder / f"{self.key.name}{_LEARNED}"

    def read(self) -> list[LearnedStep]:
        """Return the step times that are newer than the measured plan, if there is one.

        A file that cannot be read, is damaged or was not written for this key is ignored, with one line in the log.
        """
        try:
            data = _read_regular(self.path)
            saved = msgspec.json.decode(data, type=_Learned)
            if saved.key != self.key:
                raise ValueError("it belongs to another model, llama.cpp build or processor")
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
            reason = getattr(error, "strerror", None) or str(error)
            log.warning("learned step times ignored", file=str(self.path), reason=reason)
            return []
        since = self._measured_at()
        return [step for step in saved.steps if step.at >= since]

    def write(self, steps: Sequence[LearnedStep]) -> None:
        """Replace the file. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(self.path, msgspec.json.encode(_Learned(self.key, list(steps))))
        files = sorted(self.folder.glob(f"*{_LEARNED}"), key=lambda file: file.stat().st_mtime)
        for file in files[:-MAX_FILES]:
            file.unlink(missing_ok=True)

    def _measured_at(self) -> float:
        """Return when the plan was measured, in seconds since the epoch; 0 if it was not."""
        try:
            return (self.folder / f"{self.key.name}.json").stat().st_mtime
        except OSError:
            return 0.0


def _read_regular(path: Path) -> bytes:
    """Return the content of a file of at most MAX_BYTES. Raises OSError or ValueError."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # without O_NONBLOCK a FIFO would block
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is not a regular file")
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
    return data
