"""The text of documents that users give to the chat page, read in child processes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import msgspec

from engine import environment, module_command
from gateway.errors import EngineUnavailableError, InvalidRequestError
from gateway.prompts.document_reader import Found, Text, Unreadable

SECONDS: Final = 30.0
"""Time limit of one document in seconds."""
_decoder: Final[msgspec.msgpack.Decoder[Found]] = msgspec.msgpack.Decoder(Found)


async def document_text(data: bytes) -> Text:
    """Return the text of a PDF or docx file. Raises InvalidRequestError or EngineUnavailableError."""
    try:
        child = await asyncio.create_subprocess_exec(
            *module_command("gateway.prompts.document_reader"),
            env=environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise EngineUnavailableError(f"the document could not be read: {error.strerror}; try again") from error
    try:
        async with asyncio.timeout(SECONDS):
            written, _ = await child.communicate(data)
        found = _decoder.decode(written)
    except TimeoutError as error:
        raise InvalidRequestError(f"the document took longer than {SECONDS:g} s to read; send its text") from error
    except msgspec.MsgspecError as error:
        raise InvalidRequestError("the document is damaged or too complex to read; send its text") from error
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if isinstance(found, Unreadable):
        raise InvalidRequestError(f"the document has no text that can be used: {found.reason}; send its text")
    return found
