"""Types of settings: the forms in which flags, environment and file may give a value."""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from cache import check_url
from gateway.config.durations import FORMS, parse_duration

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
SQLITE: Final = "sqlite"
"""Value of `cache` for a file in the state folder, which needs no server."""
_SIZE: Final = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*$", re.IGNORECASE)


def is_loopback(host: str) -> bool:
    """Return whether the address `host` can be reached from this machine only."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in LOOPBACK
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _size(value: object) -> object:
    """Return the bytes of `512 MiB`, `1G` or a plain number; units are powers of 1 024."""
    if not isinstance(value, str):
        return value
    match = _SIZE.match(value)
    if match is None:
        raise ValueError("must be a size such as 768 MiB")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))


def _seconds(value: object) -> float:
    """Return the seconds of `7 days`, `12h` or a number. Raises ValueError for other values, including booleans."""
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise ValueError(f"must be {FORMS}")


def _size_or_auto(value: object) -> object:
    """Return the bytes of a size, or the word `auto`."""
    try:
        return _lower(value) if _lower(value) == "auto" else _size(value)
    except ValueError as error:
        raise ValueError(f"{error}, or auto") from error


def _seconds_or_never(value: object) -> object:
    """Return the seconds of a duration, or the word `never`."""
    try:
        return _lower(value) if _lower(value) == "never" else _seconds(value)
    except ValueError as error:
        raise ValueError(f"{error}, or never") from error


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _number_or_auto(value: object) -> object:
    """Return a number of tokens, or the word `auto`. Raises ValueError."""
    value = _lower(value)
    if isinstance(value, str) and value != "auto" and not value.isdecimal():
        raise ValueError("must be a number of tokens, or auto")
    return value


def _store(value: object) -> object:
    """Return the URL of a store, or SQLITE. Raises ValueError."""
    return value if value == SQLITE or not isinstance(value, str) else check_url(value)


def _words(value: object) -> object:
    """Return the items of a list such as `a, b`."""
    return [word for word in re.split(r"[,\s]+", value) if word] if isinstance(value, str) else value


def _with_schemes(origins: list[str]) -> list[str]:
    """Return `origins`. Raises ValueError if one has no scheme, and so could never match."""
    for origin in origins:
        if origin not in ("*", "null") and "://" not in origin:
            raise ValueError(f"{origin} has no scheme; write https://{origin}")
    return origins


def _pairs(value: object) -> object:
    """Return the pairs of `name=model, name=model`. Raises ValueError."""
    if not isinstance(value, str):
        return value
    pairs = [item.partition("=") for item in re.split(r"[,\s]+", value) if item]
    if not all(name and model for name, _, model in pairs):
        raise ValueError("must be pairs such as gpt-4o-mini=smollm2-135m-instruct")
    return {name: model for name, _, model in pairs}


def _texts(value: object) -> object:
    """Return the texts of a JSON object such as `{"Letter": "Write a letter."}`. Raises ValueError."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError('must be texts by name, {"Letter": "Write a letter."}') from error


def _path(value: object) -> object:
    """Return a path with a leading `~` or `~user` expanded. Raises ValueError."""
    try:
        return Path(value).expanduser() if isinstance(value, str) else value
    except RuntimeError as error:
        raise ValueError("must be a path; this user has no home folder") from error


def _root_path(value: object) -> object:
    """Return a path prefix with a leading slash and without a trailing one."""
    return f"/{value.strip('/')}" if isinstance(value, str) and value.strip("/") else ""


Bytes = Annotated[int, BeforeValidator(_size)]
BytesOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_size_or_auto)]
Seconds = Annotated[float, BeforeValidator(_seconds)]
SecondsOrNever = Annotated[
    Annotated[float, Field(ge=60, le=1e9)] | Literal["never"], BeforeValidator(_seconds_or_never)
]
Context = Annotated[Annotated[int, Field(ge=64, le=1 << 20)] | Literal["auto"], BeforeValidator(_number_or_auto)]
Aliases = Annotated[dict[str, str], NoDecode, BeforeValidator(_pairs)]
Texts = Annotated[
    dict[Annotated[str, Field(max_length=80)], Annotated[str, Field(max_length=8000)]],
    NoDecode,
    BeforeValidator(_texts),
    Field(max_length=100),
]
RootPath = Annotated[str, BeforeValidator(_root_path)]
StoreUrl = Annotated[str, BeforeValidator(_store)]
Words = Annotated[list[str], NoDecode, BeforeValidator(_words)]  # NoDecode: environment variables are not JSON
UserPath = Annotated[Path, BeforeValidator(_path)]
Origins = Annotated[Words, AfterValidator(_with_schemes)]
