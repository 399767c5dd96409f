"""`samovar doctor`: check this machine and the settings, and print how to fix problems"""

from __future__ import annotations

import errno
import http.client
import re
import shutil
import socket
import sqlite3
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from cache import supports_locks
from engine import EngineError, build_features, model_size, repacks_weights
from gateway.cli.client import get
from gateway.cli.doctor.finding import Checks, Finding, Mark, nearest_existing, size
from gateway.cli.doctor.messages import TEXTS
from gateway.cli.doctor.storage import StorageChecks
from gateway.cli.doctor.template import TemplateChecks
from gateway.cli.keys import has_keys
from gateway.cli.language import Phrases, is_chinese
from gateway.cli.screen import plain
from gateway.config.machine import available_cores, available_memory, schedulable_cpus
from gateway.config.settings import Settings
from gateway.models.catalogue import EMBEDDED, RECOMMENDED, ModelNotAvailableError
from gateway.models.served import ServedModel, load
from gateway.prompts.chat_template import TemplateError

Values = Mapping[str, object]
LEAST_DISK: Final = 1 << 30
FLAGS: Final = {
    "avx2": "AVX2",
    "f16c": "F16C",
    "fma": "FMA",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
    "avx_vnni": "AVX_VNNI",
}
"""CPU features that speed up decoding: Linux's flag, and llama.cpp's name."""


def run(settings: Settings) -> int:
    """Print all findings; 1 when serving would fail. Raises SettingsError where everybody could come in by accident."""
    with suppress(OSError):  # the checks of the state folder report it
        settings.check_exposure(has_keys=has_keys(settings))
    console = Console(highlight=False, markup=False, emoji=False)
    failed = False
    for finding in Doctor(settings, Phrases(TEXTS, chinese=is_chinese())).findings():
        failed |= finding.mark is Mark.FAIL
        line = Text(f"{finding.mark.name.lower():4}", finding.mark.value)
        line.append(f"  {finding.subject}: ", "bold").append(plain(finding.text), "default")
        if finding.fix:
            line.append(f" → {finding.fix}", "default")
        console.print(line, soft_wrap=True)
    return int(failed)


class Doctor(Checks):
    """Read-only checks of the machine and the settings."""

    def __init__(self, settings: Settings, say: Phrases) -> None:
        """Check `settings` on this machine; `say` selects the language."""
        super().__init__(settings, say)
        self._served: ServedModel | None = None
        self._serving = False

    def findings(self) -> Iterator[Finding]:
        """Yield all findings, in the order in which `samovar serve` would meet the problems."""
        # Check the port first, though it is reported later: a running gateway already uses its memory.
        port = self._port()
        for part in (self._model, self._cpu, self._cores, self._memory, self._disk):
            yield from part()
        yield from StorageChecks(self._settings, self._say).findings()
        yield port
        yield from self._tls()

    def _model(self) -> Iterator[Finding]:
        name = self._settings.model
        try:
            served = load(self._settings)
        except ModelNotAvailableError as error:
            yield self._bad(Mark.FAIL, "model", "reason", "another_model", reason=str(error).removeprefix("model: "))
            return
        except (EngineError, OSError, RuntimeError) as error:  # RuntimeError: `~nobody`
            if isinstance(error, OSError) and Path(error.filename or "").is_relative_to(self._settings.state_dir):
                return  # its plan, not the model: the check of the state folder reports it
            yield self._bad(Mark.FAIL, "model", "unreadable", "another_file", reason=error)
            return
        except TemplateError as error:
            yield self._bad(Mark.FAIL, "model", "template_fails", "another_model", name=name, reason=error)
            return
        self._served = served
        values: Values = {"size": size(model_size(served.entry.path)), "vocabulary": served.tokens.size}
        yield self._good("model", "opened", name=served.entry.name, **values)
        yield from TemplateChecks(self._settings, self._say).findings(served.abilities)
        yield self._languages(served)
        if not served.has_blocks:
            yield self._bad(Mark.WARN, "cache", "no_blocks", "model_with_blocks", name=served.entry.name)
        yield self._context(served)

    def _context(self, served: ServedModel) -> Finding:
        """Return the context and what limits it."""
        limit, asked = served.sizes.limit, self._settings.context
        values: Values = {"context": served.context, "asked": asked, "memory": size(self._settings.memory)}
        if limit == "trained" and asked != "auto":
            return self._bad(Mark.WARN, "context", "short", "shorter", **values)
        if limit == "memory":
            return self._bad(Mark.WARN, "context", "context_memory", "more_memory", **values)
        if limit == "least":
            return self._bad(Mark.WARN, "context", "context_least", "more_memory", **values)
        if limit == "engine_memory":
            return self._bad(Mark.WARN, "context", "context_engine_memory", "more_engine_memory", **values)
        return self._good("context", f"context_{limit}", **values)

    def _languages(self, served: ServedModel) -> Finding:
        if not served.entry.languages:
            return self._good("languages", "unknown")
        names = ", ".join(served.entry.languages)
        if served.entry.name == EMBEDDED and self._say.chinese:
            return self._bad(Mark.WARN, "languages", "known", "qwen", names=names, qwen=RECOMMENDED)
        return self._good("languages", "known", names=names)

    def _cpu(self) -> Iterator[Finding]:
        features = build_features()
        names = " ".join(sorted(features)) or "–"
        unused = {name for flag, name in FLAGS.items() if flag in _cpu_flags()} - features
        if unused:
            yield self._bad(Mark.WARN, "cpu", "slow_build", "rebuild", names=", ".join(sorted(unused)))
        else:
            yield self._good("cpu", "build", names=names)
        if not repacks_weights():
            yield self._good("cpu", "amx_off")

    def _cores(self) -> Iterator[Finding]:
        cores, physical, logical = self._settings.cores, available_cores(), schedulable_cpus()
        values: Values = {
            "cores": cores,
            "physical": physical,
            "logical": logical,
            "engines": self._settings.engine_count,
        }
        if cores > physical:
            yield self._bad(Mark.WARN, "cores", "too_many", "fewer_cores", **values)
        else:
            yield self._good("cores", "cores_are", **values)

    def _memory(self) -> Iterator[Finding]:
        if self._served is None:
            return
        engines, available = self._settings.engine_count, available_memory()
        one, all_ = (self._served.footprint(count) for count in (1, engines))
        values: Values = {
            "one": size(one),
            "all": size(all_),
            "available": size(available),
            "engines": engines,
            "cells": self._served.cells,
        }
        if self._serving:
            yield self._good("memory", "memory_taken", **values)
        elif available < one:
            yield self._bad(Mark.FAIL, "memory", "memory_small", "less_memory", **values)
        elif available < all_:
            yield self._bad(Mark.WARN, "memory", "memory_short", "fewer_engines", **values)
        else:
            yield self._good("memory", "memory_fits", **values)

    def _disk(self) -> Iterator[Finding]:
        folder = self._settings.state_dir
        existing = nearest_existing(folder)
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            yield self._bad(Mark.FAIL, "state", "unwritable", "other_folder", path=folder, reason=error.strerror)
            return
        if not supports_locks(existing):
            yield self._bad(Mark.FAIL, "state", "no_locks", "local_disk", path=folder)
            return
        try:
            _open_database(folder / "conversations.db")
        except sqlite3.Error as error:
            path = folder / "conversations.db"
            yield self._bad(Mark.FAIL, "state", "no_database", "other_folder", path=path, reason=error)
            return
        free = shutil.disk_usage(existing).free
        if free < LEAST_DISK:
            yield self._bad(Mark.WARN, "state", "disk_short", "free_disk", path=folder, free=size(free))
        else:
            yield self._good("state", "disk_fits", path=folder, free=size(free))

    def _port(self) -> Finding:
        values: Values = {"host": self._settings.host, "port": self._settings.port}
        error = _cannot_bind(self._settings)
        if error is None:
            return self._good("port", "port_free", **values)
        if error.errno == errno.EADDRINUSE:
            self._serving = _is_samovar(self._settings)
            if self._serving:
                return self._good("port", "port_ours", url=self._settings.url)
            return self._bad(Mark.FAIL, "port", "port_taken", "other_port", **values)
        fix = "other_port" if error.errno == errno.EACCES else "other_host"
        return self._bad(Mark.FAIL, "port", "port_refused", fix, reason=error.strerror or error, **values)

    def _tls(self) -> Iterator[Finding]:
        certificate, key = self._settings.tls_cert, self._settings.tls_key
        if certificate is None or key is None:
            return
        try:
            # A key with a password would prompt for it during startup, where nobody may be able to answer.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
        except (OSError, ValueError) as error:  # SSLError is an OSError
            yield self._bad(Mark.FAIL, "tls", "tls_bad", "fix_tls", cert=certificate, key=key, reason=error)
        else:
            yield self._good("tls", "tls_good", cert=certificate)


def _cannot_bind(settings: Settings) -> OSError | None:
    """Return the error that the gateway would get when it binds its port, or None."""
    with closing(socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            return error
    return None


def _is_samovar(settings: Settings) -> bool:
    try:
        return get(settings, "/healthz", timeout=2.0) == (200, {"status": "alive"})
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _open_database(path: Path) -> None:
    """Raise sqlite3.Error if `path` exists and is not a database."""
    if path.exists():
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()


def _cpu_flags() -> frozenset[str]:
    """Return the CPU's feature flags by their Linux names; empty on other systems."""
    try:
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(found[1].split()) if found else frozenset()
