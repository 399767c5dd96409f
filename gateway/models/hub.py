"""Downloads from a Hugging Face hub or a mirror: resumed after an interruption, and verified before use."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import httpx2
from filelock import FileLock, Timeout
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, logging

from gateway.models.catalogue import Published
from gateway.models.library import Library, Record

SILENCE_SECONDS: Final = 30.0
"""Seconds without data after which the connection counts as broken."""
BROKEN_LIMIT: Final = 5
"""Consecutive connections that may break without receiving data."""
SPARE: Final = 64 << 20
"""Bytes of disk space that a download leaves free."""


class PullError(Exception):
    """A model could not be pulled. The text gives the reason and what to do."""


class Progress(Protocol):
    """A callback for the progress of a download."""

    def __call__(self, done: int, total: int, /, *, verifying: bool) -> None:
        """Report that `done` of `total` bytes are downloaded or, if `verifying`, verified."""


@dataclass(frozen=True)
class Remote:
    """The metadata of a file, as the hub states it before the download."""

    url: str
    revision: str
    size: int
    sha256: str


def pull(
    published: Published,
    library: Library,
    *,
    endpoint: str | None,
    progress: Progress,
    pause: Callable[[float], None] = time.sleep,
) -> Record:
    """Download a model of the catalogue into the library, resuming an earlier pull. Raises PullError.

    A complete file is verified and not downloaded again. A file with another digest is deleted. `pause` waits for the
    given seconds before reconnecting.
    """
    constants.HF_HUB_DISABLE_TELEMETRY = True  # request only the model, and send no data about this machine
    logging.set_verbosity(logging.ERROR)  # multi-line warnings would break the progress bar
    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    try:
        library.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(library.path(f"{published.file}.lock"), timeout=0):
            return _Pull(published, library, endpoint, progress, pause).run()
    except Timeout as error:
        raise PullError(f"{published.name} is being pulled by another process; wait for that process") from error
    except OSError as error:
        text = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise PullError(f"{library.folder}: {text}; make room or set XDG_DATA_HOME, and pull again") from error


class _Pull:
    """One pull. The caller holds the file lock."""

    def __init__(
        self, published: Published, library: Library, endpoint: str, progress: Progress, pause: Callable[[float], None]
    ) -> None:
        self._published = published
        self._library = library
        self._endpoint = endpoint
        self._progress = progress
        self._pause = pause
        self._path = library.path(published.file)

    def run(self) -> Record:
        record = self._library.record(self._published.file)
        if record is not None and self._is_good(self._path, record.size, record.sha256):
            return record
        remote = self._locate()
        if not self._is_good(self._path, remote.size, remote.sha256):  # the file may have been copied here by hand
            part = self._path.with_name(f"{self._path.name}.{remote.sha256[:16]}.part")
            self._download(remote, part)
            if not self._is_good(part, remote.size, remote.sha256):
                part.unlink()
                raise PullError(
                    f"{self._published.file} has another sha256 than {remote.sha256} and was deleted; pull again"
                )
            part.replace(self._path)
        return self._record(remote)

    def _is_good(self, path: Path, size: int, sha256: str) -> bool:
        if not path.is_file() or path.stat().st_size != size:
            return False
        digest, done = hashlib.sha256(), 0
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                done += len(chunk)
                self._progress(done, size, verifying=True)
        return digest.hexdigest() == sha256

    def _locate(self) -> Remote:
        published = self._published
        url = hf_hub_url(published.repository, published.file, endpoint=self._endpoint)
        try:
            with self._refusals():
                metadata = get_hf_file_metadata(url, token=False, library_name="samovar", endpoint=self._endpoint)
        except (httpx2.TransportError, OfflineModeIsEnabled) as error:
            raise PullError(
                f"no hub answers at {self._endpoint} ({_reason(error)}); check the network, "
                "or name a mirror with --endpoint"
            ) from error
        stated = metadata.etag or ""
        sha256 = stated if re.fullmatch(r"[0-9a-f]{64}", stated) else published.sha256
        if metadata.size is None or metadata.commit_hash is None or sha256 is None:
            raise PullError(
                f"{self._endpoint} is not a hub: it states no size, revision or sha256 of {published.file}; name "
                "another mirror with --endpoint"
            )
        if (published.sha256 or sha256, published.size or metadata.size) != (sha256, metadata.size):
            raise PullError(
                f"{published.file} at {self._endpoint} differs from the catalogue's; nothing was downloaded, name "
                "another mirror with --endpoint"
            )
        return Remote(url, metadata.commit_hash, metadata.size, sha256)

    def _download(self, remote: Remote, part: Path) -> None:
        for stale in self._path.parent.glob(f"{self._path.name}.*.part"):
            if stale != part:  # a part of a file that the hub has replaced
                stale.unlink()
        with part.open("ab") as file:
            if file.tell() > remote.size:
                _empty(file)
            missing, free = remote.size - file.tell(), shutil.disk_usage(part.parent).free
            if missing + SPARE > free:
                raise PullError(
                    f"{part.parent}: {_megabytes(missing)} are needed and {_megabytes(free)} are free; "
                    "make room, or set XDG_DATA_HOME"
                )
            broken = 0
            while file.tell() < remote.size:
                before = file.tell()
                try:
                    self._stream(remote, file)
                except httpx2.TransportError as error:
                    broken = 0 if file.tell() > before else broken + 1
                    if broken == BROKEN_LIMIT:
                        at = f"{_megabytes(file.tell())} of {_megabytes(remote.size)}"
                        text = f"the connection broke at {at} ({_reason(error)}); pull again to resume"
                        raise PullError(text) from error
                    self._pause(float(broken and 2**broken))

    def _stream(self, remote: Remote, file: BinaryIO) -> None:
        """Append the missing bytes. Raises httpx2.TransportError if the connection breaks."""
        # No token: the whole catalogue is public, and a mirror must not learn the token.
        headers = build_hf_headers(token=False, library_name="samovar") | {"Accept-Encoding": "identity"}
        if file.tell():
            headers["Range"] = f"bytes={file.tell()}-"
        request = get_session().stream("GET", remote.url, headers=headers, timeout=SILENCE_SECONDS)
        with self._refusals(), request as response:
            hf_raise_for_status(response)
            if response.status_code == httpx2.codes.OK:  # the server or a proxy has ignored the Range header
                _empty(file)
            for chunk in response.iter_bytes():
                file.write(chunk)
                file.flush()  # so that received data survives a killed process
                if file.tell() > remote.size:
                    _empty(file)
                    raise PullError(
                        f"{self._endpoint} sends more than the {remote.size} bytes that it stated; name another mirror "
                        "with --endpoint"
                    )
                self._progress(file.tell(), remote.size, verifying=False)
        if file.tell() < remote.size:
            raise httpx2.RemoteProtocolError("the hub ended the download early")

    def _record(self, remote: Remote) -> Record:
        published = self._published
        record = Record(
            name=published.name,
            repository=published.repository,
            revision=remote.revision,
            file=published.file,
            size=remote.size,
            sha256=remote.sha256,
            licence=published.licence,
        )
        self._library.write(record)
        return record

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Raise PullError for error responses of the hub. A broken connection stays a TransportError."""
        try:
            yield
        except (RepositoryNotFoundError, EntryNotFoundError, RevisionNotFoundError) as error:
            where = f"{self._published.repository}/{self._published.file}"
            raise PullError(f"{self._endpoint} has no {where}; try another mirror with --endpoint") from error
        except HfHubHTTPError as error:
            raise PullError(f"{self._endpoint} answers {error.response.status_code}; pull again later") from error
        except httpx2.TransportError:
            raise
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:  # a redirect loop or an invalid redirect
            raise PullError(
                f"{self._endpoint} is not a hub ({_reason(error)}); name another mirror with --endpoint"
            ) from error


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
