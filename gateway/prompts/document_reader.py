"""The program that reads the text of one document: from standard input to standard output, with limited resources.

A damaged or hostile file may crash, hang or exhaust this process, never the gateway.
"""

from __future__ import annotations

import io
import os
import resource
import sys
import zipfile
from collections.abc import Iterator
from typing import IO, Final, Literal
from xml.etree import ElementTree  # the process has limits, against entities that expand

import msgspec

from gateway.config.resource_limits import limit

MAX_TEXT: Final = 600_000
"""Maximum bytes of the text in UTF-8: a message has at most 1 MiB, and its JSON escapes some characters."""
PROCESSOR_SECONDS: Final = 15
"""Limit of the processor time in seconds. Most PDFs have 50 to 200 pages a second."""
MEMORY: Final = 512 << 20
"""Bytes that the process may allocate."""
_NICE: Final = 10
"""Engines come first."""
_PDF_HEAD: Final = 1024
"""Bytes within which a PDF must begin, since some programs write something before it."""
_DOCX_PART: Final = "word/document.xml"
_WORD: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_BREAKS: Final = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


class Text(msgspec.Struct, frozen=True, tag="text"):
    """The text of a document, without the end if it `is_cut`."""

    text: str
    is_cut: bool


class Unreadable(msgspec.Struct, frozen=True, tag="unreadable"):
    """Why a document has no text here."""

    reason: Literal["it is neither a PDF nor a docx file", "it is protected by a password", "it contains no text"]


Found = Text | Unreadable


def read(data: bytes) -> Found:
    """Return the text of a PDF or docx file. Raises various errors if the file is damaged."""
    if b"%PDF-" in data[:_PDF_HEAD]:
        from pypdf import PdfReader  # imported late: the gateway imports this module for the types of its answers

        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            return Unreadable("it is protected by a password")
        return _joined(f"{page.extract_text().strip()}\n\n" for page in reader.pages)
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if _DOCX_PART in archive.namelist():
                with archive.open(_DOCX_PART) as part:
                    return _joined(_words(part))
    return Unreadable("it is neither a PDF nor a docx file")


def _words(part: IO[bytes]) -> Iterator[str]:
    """Yield the texts of a document's main part, with a line per paragraph, and one per row of a table."""
    cells = 0
    for event, element in ElementTree.iterparse(part, ("start", "end")):  # noqa: S314 - the process has limits
        name = element.tag.removeprefix(_WORD)
        if name == "tc":
            cells += 1 if event == "start" else -1
        if event == "start":
            continue
        if name == "t":
            yield element.text or ""
        elif name == "p":
            yield " " if cells else "\n"
        elif name in ("tc", "tr"):
            yield "\t" if name == "tc" else "\n"
        elif name in _BREAKS:
            yield _BREAKS[name]
        if name in ("p", "tbl"):
            element.clear()


def _joined(parts: Iterator[str]) -> Found:
    kept, size = list[str](), 0
    for part in parts:
        kept.append(part)
        size += len(part.encode("utf-8", "replace"))
        if size > MAX_TEXT:
            break
    whole = "".join(kept).encode("utf-8", "replace")
    text = whole[:MAX_TEXT].decode(errors="ignore").strip()
    return Text(text, size > MAX_TEXT) if text else Unreadable("it contains no text")


def main() -> int:
    """Read the document under resource limits, and write what was found."""
    limit(resource.RLIMIT_DATA, MEMORY)
    limit(resource.RLIMIT_CPU, PROCESSOR_SECONDS)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, 0)  # it writes to a pipe only
    os.nice(_NICE)
    sys.stdout.buffer.write(msgspec.msgpack.encode(read(sys.stdin.buffer.read())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
