"""The log: one line per event on stderr, as text on a terminal and as JSON otherwise.

A thread writes the lines, so that a blocked reader of stderr never blocks the event loop. Lines that do not fit into
the queue are dropped and counted.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
from collections import deque
from typing import Any, Final

import structlog

STDERR: Final = 2
"""File descriptor of the log."""
QUEUE_BYTES: Final = 1 << 20
"""Maximum bytes of queued lines: a few thousand lines, in addition to the pipe's own 64 KiB."""
FLUSH_SECONDS: Final = 1.0
"""Maximum seconds that the process waits at exit for unwritten lines."""


class QueueHandler(logging.Handler):
    """Formats records in the calling thread and writes them to a file descriptor in a background thread."""

    def __init__(self, fd: int, *, encoding: str = "utf-8", limit: int = QUEUE_BYTES) -> None:
        """Write to `fd`, which the caller owns, with at most `limit` bytes queued."""
        super().__init__()
        self._dropped = 0
        """Lines dropped since the last report."""
        self._fd = fd
        self._encoding = encoding
        self._limit = limit
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._writing = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record's line, or count it as dropped if the queue is full. Never blocks."""
        try:
            line = self._line(record)
        except Exception as error:  # noqa: BLE001 - a record that cannot be formatted must not fail its caller
            line = f"log record of {record.name} cannot be formatted: {type(error).__name__}\n".encode()
        with self._changed:
            if self._bytes + len(line) > self._limit:
                self._dropped += 1
                return
            self._lines.append(line)
            self._bytes += len(line)
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all lines are written, at most FLUSH_SECONDS. `logging` calls this at exit."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._lines or self._writing), FLUSH_SECONDS)

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(self._encoding, "backslashreplace")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                line, lost = self._lines.popleft(), self._dropped
                self._writing = True
            report = self._line(_report(lost)) if lost else b""
            try:
                self._write(report + line)
            except OSError:  # the reader has closed the pipe, or the disk is full
                with self._changed:
                    self._bytes -= len(line)
                    self._dropped += 1
                continue
            with self._changed:
                self._bytes -= len(line)
                self._dropped -= lost

    def _write(self, data: bytes) -> None:
        """Write all of `data`, blocking as long as necessary. Raises OSError."""
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # another process on the same terminal has set O_NONBLOCK
                select.select([], [self._fd], [])


def _report(lost: int) -> logging.LogRecord:
    """Return a record which reports that `lost` lines were dropped."""
    values = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": "log lines dropped"}
    return logging.makeLogRecord({**values, "lines": lost})


def configure() -> QueueHandler:
    """Send the log lines of structlog and the standard library to stderr, and return the handler that writes them."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=False),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    terminal = sys.stderr.isatty()
    render: list[Any] = (
        [structlog.dev.ConsoleRenderer()]
        if terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    )
    handler = QueueHandler(STDERR, encoding=sys.stderr.encoding)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(allow=["lines"]), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its INFO lines repeat the gateway's, without request ids
    logging.getLogger("uvicorn.error").addFilter(_is_not_invalid_utf8)
    return handler


def _is_not_invalid_utf8(record: logging.LogRecord) -> bool:
    """Drop uvicorn's tracebacks for frames that are not valid UTF-8, so that no client can fill the log."""
    return not record.getMessage().startswith("Invalid UTF-8")
