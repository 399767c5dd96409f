"""Messages that explain Redis errors. None contains a password."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.sentinel import MasterNotFoundError

from cache.address import Address
from cache.errors import StoreDeniedError, StoreError, StoreFullError, StoreReadOnlyError, UnsupportedStoreError

PROBE_SECONDS: Final = 0.25
"""Timeout in seconds of the connection that tests whether a port uses TLS."""
_FULL_CODES: Final = ("MISCONF", "NOREPLICAS")
"""Error codes, besides OOM, with which a readable Redis rejects writes."""
_LOST_ROLE: Final = (ReadOnlyError, BusyLoadingError, MasterDownError, ClusterDownError)
_FILES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_NO_TLS: Final = "{} does not speak TLS; write redis:// for rediss://, or name its TLS port"
_GARBAGE: Final = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError)
"""What redis-py's parser, and code that reads its output, can raise on garbage or a connection cut by `interrupt`."""


def has_lost_role(error: Exception) -> bool:
    """Return whether `error` shows that the server is no longer the master."""
    return isinstance(error, _LOST_ROLE) or str(error).startswith("UNBLOCKED")


@contextlib.contextmanager
def explained(address: Address) -> Iterator[None]:
    """Raise redis-py's errors as StoreError."""
    try:
        yield
    except StoreError:
        raise
    except (RedisError, *_GARBAGE) as error:
        raise explain(error, address) from error


def explain(error: Exception, address: Address) -> StoreError:
    """Return the StoreError that names the cause of `error`."""
    if isinstance(error, AuthenticationError):
        return StoreError(f"cache: Redis refuses the user or the password of the address: {error}")
    if isinstance(error, ResponseError):
        return _refusal(error, address)
    if isinstance(error, RedisTimeoutError):
        if address.scheme == "rediss" and _speaks_plainly(address):
            return StoreError(f"cache: {_NO_TLS.format(address)}")
        return StoreError("cache: Redis does not respond in time")
    if isinstance(error, BusyLoadingError):
        return StoreError("cache: Redis is loading its data")
    if isinstance(error, MasterNotFoundError) and "AuthenticationError" in str(
        error
    ):  # redis-py quotes each Sentinel's
        return StoreError("cache: the Sentinels refuse the password; set the option sentinel_password")
    if isinstance(error, MasterNotFoundError):
        return StoreError(
            f"cache: no Sentinel of {address} names a master {address.service} that is up; compare with "
            f"`redis-cli -p {address.nodes[0][1]} sentinel masters`"
        )
    if isinstance(error, (RedisConnectionError, InvalidResponse)):
        return StoreError(f"cache: {_unreachable(error, address)}")
    return StoreError(f"cache: the server is not a Redis: {type(error).__name__}")


def _refusal(error: ResponseError, address: Address) -> StoreError:
    if isinstance(error, ReadOnlyError):
        return StoreReadOnlyError("cache: Redis takes no writes: it is a replica; the address must lead to the master")
    if isinstance(error, MasterDownError):
        return StoreError("cache: Redis is a replica that has lost its master")
    if isinstance(error, (AskError, ClusterDownError, ClusterCrossSlotError)):
        return UnsupportedStoreError(
            f"cache: {address} is a Redis Cluster, which Samovar can't use; name a single Redis, or its Sentinels: "
            "redis+sentinel://HOST:26379,HOST:26379/NAME/0"
        )
    if isinstance(error, NoPermissionError):
        return StoreDeniedError(f"cache: Redis refuses: {error}; allow it with ACL SETUSER")
    full = isinstance(error, OutOfMemoryError) or str(error).startswith(_FULL_CODES)
    return (StoreFullError if full else StoreError)(f"cache: Redis refuses: {error}")


def _unreachable(error: Exception, address: Address) -> str:
    if address.scheme == "rediss":
        return _tls_cause(error, address) or f"Redis can't be reached: {error}"
    if address.scheme == "redis" and _speaks_tls(address):
        return f"{address} speaks TLS; write rediss:// for redis://"
    if isinstance(error, InvalidResponse):
        return f"the server is not a Redis: {type(error).__name__}"
    return f"Redis can't be reached: {error}"


def _tls_cause(error: BaseException | None, address: Address) -> str:
    """Return why the TLS connection failed; empty if TLS is not the cause."""
    for name in _FILES:
        if fault := _file_fault(name, address.options.get(name)):
            return fault
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"the certificate of {address} is not trusted: {error.verify_message}; "
                "name its authority's certificate (PEM) with the option ssl_ca_certs"
            )
        if isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            return _NO_TLS.format(address)
        error = error.__cause__ or error.__context__
    return ""


def _file_fault(name: str, path: str | None) -> str:
    """Return what is wrong with the file of an option; empty if it is good or the option is not set."""
    if path is None:
        return ""
    try:
        if not Path(path).exists():
            return f"the option {name}: there is no file {path}"
        if Path(path).is_dir() != (name == "ssl_ca_path"):
            return f"the option {name}: {path} is {'not a folder' if name == 'ssl_ca_path' else 'a folder'}"
        if name == "ssl_ca_certs":
            ssl.create_default_context(cafile=path)
        elif name != "ssl_ca_path":
            with Path(path).open("rb"):
                pass
    except ssl.SSLError:
        return f"the option {name}: {path} holds no certificate in PEM"
    except OSError as error:
        return f"the option {name}: {path} can't be read: {error.strerror}"
    return ""


def _speaks_plainly(address: Address) -> bool:
    """Return whether the port answers without TLS. Redis does not answer a TLS handshake: it waits for a line feed."""
    with contextlib.suppress(OSError), socket.create_connection(address.nodes[0], PROBE_SECONDS) as plain:
        plain.settimeout(PROBE_SECONDS)
        plain.sendall(b"PING\r\n")
        return plain.recv(1) in (b"+", b"-")
    return False


def _speaks_tls(address: Address) -> bool:
    """Return whether the port answers a TLS handshake, with any certificate: the usual cause of a closed connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.suppress(OSError), socket.create_connection(address.nodes[0], PROBE_SECONDS) as plain:
        try:
            with context.wrap_socket(plain):
                return True
        except (
            ssl.SSLError
        ) as error:  # an alert proves TLS: the server requires a client certificate or another version
            return "ALERT" in (error.reason or "")
    return False
