"""All settings. Precedence: command line, SAMOVAR_* environment variables, samovar.toml, defaults."""

from __future__ import annotations

import codecs
import difflib
import ipaddress
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self
from urllib.parse import quote

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from cache import KeyRing
from gateway.config.machine import available_cores, schedulable_cpus, total_memory
from gateway.config.setting_types import (
    SQLITE,
    Aliases,
    Bytes,
    BytesOrAuto,
    Context,
    Origins,
    RootPath,
    Seconds,
    SecondsOrNever,
    StoreUrl,
    Texts,
    UserPath,
    Words,
    is_loopback,
)

PREFIX: Final = "SAMOVAR_"
CONFIG: Final = Path("samovar.toml")
_SECRETS: Final = ("cache", "cache_key")
"""Settings whose values may hold a password or a key, and are not shown."""
LEAST_MEMORY: Final = 64 << 20
"""Minimum of `memory` and `engine_memory` in bytes: the smallest models take more."""
SIZES: Final = ("memory", "engine_memory", "user_storage", "cache_max_bytes")
"""Settings in bytes, whose bounds are shown in MiB."""


class SettingsError(Exception):
    """A setting is unknown or invalid. The text names the setting and what it accepts."""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long, or its folder is not accessible
        return False


def _default_state() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    try:
        return Path(base).expanduser() / "samovar"
    except RuntimeError as error:  # no HOME and no entry in passwd, as in a container under an arbitrary user id
        raise SettingsError(
            "state_dir: this user has no home folder; name a folder with state_dir, or set XDG_STATE_HOME"
        ) from error


class Settings(BaseSettings):
    """The settings of one gateway. A field's description is its help text on the command line."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", protected_namespaces=(), frozen=True
    )

    from_file: ClassVar[dict[str, Any]] = {}

    model: str = Field("smollm2-135m-instruct", description="name in the catalogue, or path of a GGUF file")
    aliases: Aliases = Field(
        {},
        description="other names of the model for clients that insist on theirs, `gpt-4o-mini=smollm2-135m-instruct`; "
        "`*` stands for every name",
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    cores: int = Field(default_factory=available_cores, ge=1, description="processor budget of all engines together")
    engines: int | Literal["auto"] = Field("auto", description="engine processes at most")
    memory: Bytes = Field(
        default_factory=lambda: total_memory() // 2,
        ge=LEAST_MEMORY,
        description="memory of all engines together, `6 GiB`",
    )
    engine_memory: BytesOrAuto = Field(
        "auto", description="resident memory of one engine, `768 MiB`, or auto: `memory` ÷ engines"
    )
    context: Context = Field(
        "auto",
        description="tokens that a conversation may hold, or auto: what the model was trained for, at most 16384, as "
        "far as `memory` allows, but at least 4096",
    )
    max_output_tokens: int = Field(1024, ge=1, description="tokens of an answer whose request names no limit")
    instructions: str = Field("", description="the operator's own instructions, put before everybody's")
    offered_instructions: Texts = Field(
        {},
        description="instructions that users can choose on the chat page, by name: a table of `samovar.toml`, or JSON; "
        "they can be read without a key",
    )
    idle_unload: Seconds = Field(
        300, ge=0, le=1e6, description="seconds after which an idle engine is unloaded; 0 disables unloading"
    )
    preload: bool = Field(
        True, description="load engines and compute the instructions at the start, before the first request"
    )
    self_test: bool = Field(
        True,
        description="measure steps in preloaded engines for at most 10 s after the first start with a model, until the "
        "first request",
    )
    speculation: bool = Field(
        True,
        description="compute several tokens of an answer in one step where it repeats its conversation; the text is "
        "that of plain sampling",
    )
    queue_limit: int = Field(64, ge=0, le=100_000, description="maximum number of waiting requests")
    queue_timeout: Seconds = Field(60, gt=0, le=86_400, description="maximum time in seconds that a request waits")
    resume_grace: Seconds = Field(
        30, ge=0, le=86_400, description="seconds for which responses continue after their connection is lost"
    )
    allow_anonymous: bool = Field(False, description="serve addresses other than loopback without API keys")
    allowed_origins: Origins = Field(
        [],
        description="allowed origins of web pages, besides the gateway's own; `*` in one stands for any text, as in "
        "`https://*.example.org`, and `*` alone allows all",
    )
    allowed_hosts: Words = Field(
        [],
        description="allowed names in the header `Host`, besides loopback, `host`, addresses, and names without dot or "
        "in `.internal`; `*.example.org` allows subdomains",
    )
    root_path: RootPath = Field(
        "", description="path prefix under which a proxy serves the gateway, such as `/samovar`"
    )
    trusted_proxies: Words = Field([], description="addresses or networks of proxies that may set `X-Forwarded-*`")
    user_concurrency: int = Field(2, ge=1, description="responses of one user in progress; further requests wait")
    connections_per_user: int = Field(32, ge=1, description="concurrent connections and requests of one key")
    connections_per_address: int = Field(256, ge=1, description="concurrent connections and requests of one address")
    messages_per_minute: int = Field(1200, ge=1, description="messages per minute that one user may send")
    strict_fields: bool = Field(
        False, description="refuse request fields that have no effect, instead of listing them as ignored"
    )
    encode_ahead: bool = Field(True, description="let the chat page encode prompts before they are sent")
    titles: bool = Field(
        True, description="let the model write the titles of conversations on the chat page, while idle"
    )
    answer_notice: str = Field(
        "auto",
        max_length=300,
        description="line below the answers of the chat page: `auto` (that they are generated and need checking, "
        "in the reader's language), `none`, or a text",
    )
    api_key: str = Field("", description="API key that `samovar chat` sends")
    tls_cert: UserPath | None = Field(None, description="certificate chain (PEM) for TLS")
    tls_key: UserPath | None = Field(None, description="private key (PEM) of `tls_cert`")
    state_dir: UserPath = Field(default_factory=_default_state, description="folder of conversations, keys and cache")
    cache: StoreUrl = Field(
        SQLITE,
        repr=False,
        description="store of KV blocks, and of copies of conversations for other gateways: sqlite (a file in the "
        "state folder), sqlite:///PATH, redis://HOST, rediss://HOST, "
        "redis+sentinel://HOST,HOST/NAME/DB, unix:///SOCKET or memory://",
    )
    cache_ttl: Seconds = Field(
        7 * 86_400,
        ge=60,
        le=1e9,
        description="seconds after which unused KV blocks and copies in Redis are deleted; `7 days` is 604800",
    )
    conversation_ttl: SecondsOrNever = Field(
        "never", description="seconds after which an unused stored conversation is deleted, `90 days`, or never"
    )
    user_storage: Bytes = Field(
        256 << 20,
        ge=1 << 20,
        description="maximum size of one user's stored conversations, `256 MiB`; all users together may store 64 times "
        "that; the oldest turns are deleted first",
    )
    cache_max_bytes: Bytes = Field(2 << 30, ge=64 << 20, description="maximum size of all KV blocks, `2 GiB`")
    cache_key: str = Field(
        "", repr=False, description="file of the key that seals stored data, or the key itself; created if missing"
    )

    @model_validator(mode="after")
    def _check_unicode(self) -> Self:
        for name, value in self:
            try:
                str(value).encode()
            except UnicodeEncodeError as error:
                encoding = sys.getfilesystemencoding()
                other = "" if encoding == "utf-8" else ", or set LC_ALL=C.UTF-8"
                raise ValueError(f"{name}: is not valid {encoding}; rename the file or folder{other}") from error
        return self

    @model_validator(mode="after")
    def _check_memory(self) -> Self:
        for name in {"memory", "engine_memory"} & self.model_fields_set:
            size, most = getattr(self, name), total_memory()
            if size != "auto" and size < LEAST_MEMORY:
                raise ValueError(f"{name}: must be at least {LEAST_MEMORY >> 20} MiB, not {size}")
            if size != "auto" and size > most:
                raise ValueError(f"{name}: must be at most {most >> 20} MiB, the memory that exists here, not {size}")
        return self

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if self.cores > schedulable_cpus():
            raise ValueError(f"cores: this process may use {schedulable_cpus()} processors, not {self.cores}")
        if self.engines != "auto" and not 1 <= self.engines <= self.cores:
            raise ValueError(f"engines: must be between 1 and cores, which is {self.cores}: an engine needs a core")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert: requires tls_key, and tls_key requires tls_cert; set both or neither")
        try:
            _ = self.key_source
        except RuntimeError as error:
            raise ValueError("cache_key: must be a key or a path; this user has no home folder") from error
        for name in ("tls_cert", "tls_key"):
            path = getattr(self, name)
            if path is not None and not _is_file(path):
                raise ValueError(f"{name}: there is no file {path}")
        for proxy in self.trusted_proxies:
            try:
                ipaddress.ip_network(proxy, strict=False)
            except ValueError as error:
                raise ValueError(f"trusted_proxies: {proxy} is neither an address nor a network") from error
        return self

    def check_exposure(self, *, has_keys: bool) -> None:
        """Raise SettingsError if the gateway would serve other machines without API keys and without permission."""
        if has_keys or self.allow_anonymous:
            return
        where = ""
        if not is_loopback(self.host):
            where = f"host: {self.host} is not loopback"
        elif self.trusted_proxies:
            where = "trusted_proxies: a proxy forwards requests from other machines"
        if where:
            raise SettingsError(
                f"{where}, and without API keys everybody could use the gateway; add keys with "
                "`samovar keys add NAME`, or allow this with --allow-anonymous"
            )

    @property
    def engine_count(self) -> int:
        """Maximum number of engine processes. `auto` is one per core, at most four; the cost model may use fewer."""
        return min(self.cores, 4) if self.engines == "auto" else self.engines

    @property
    def cache_url(self) -> str:
        """URL of the store of KV blocks."""
        return f"sqlite://{quote(str(self.state_dir.absolute()))}/blocks.db" if self.cache == SQLITE else self.cache

    @property
    def key_source(self) -> Path | str:
        """The file of the cache key, or the key itself."""
        if self.cache_key.startswith(KeyRing.PREFIX):
            return self.cache_key
        return Path(self.cache_key).expanduser() if self.cache_key else self.state_dir / "cache.key"

    @property
    def url(self) -> str:
        """URL of the chat page for a browser on this machine."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104 - compared, not bound
        return f"{'https' if self.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the base class's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources by precedence: flags, environment, file. `load` sets `from_file` on a new subclass."""
        return init_settings, env_settings, InitSettingsSource(settings_cls, cls.from_file)


def load(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Return the effective settings. Raises SettingsError, which names the setting and its source."""
    for name in os.environ:
        if name.startswith(PREFIX):
            _known(name.removeprefix(PREFIX).lower(), f"environment {name}")
    file = config or CONFIG
    values = _read_toml(file, required=config is not None)
    for name in values:
        _known(name, str(file))
    configured = type("Settings", (Settings,), {"from_file": values})
    try:
        return configured(**flags)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise SettingsError(_explain(error)) from error


def _read_toml(file: Path, *, required: bool) -> dict[str, Any]:
    """Return the settings of a file; Notepad begins it with a byte order mark. Raises SettingsError.

    A file that exists and cannot be read is an error: it may hold a setting that closes the gateway to strangers.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        if required:
            raise SettingsError(f"--config: there is no file {file}") from error
        return {}
    except OSError as error:
        raise SettingsError(f"{file}: can't be read: {error.strerror}") from error
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise SettingsError(f"{file}: the encoding is UTF-16; save the file as UTF-8")
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file}: {error}") from error


def _known(name: str, where: str) -> None:
    if name not in Settings.model_fields:
        near = difflib.get_close_matches(name, Settings.model_fields, 1)
        raise SettingsError(f"{name}: no such setting ({where}){f'; did you mean {near[0]}?' if near else ''}")


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "greater_than_equal":
        least = first["ctx"]["ge"]
        message = f"must be at least {f'{least >> 20} MiB' if name in SIZES else f'{least:g}'}"
    shown = "" if name in _SECRETS else f", not {first['input']!r}"
    return f"{name}: {message}{shown}" if name else message
