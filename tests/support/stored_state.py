"""The state folder that commit d346b13 wrote, kept so that every later version proves that it still opens it.

`tests/fixtures/state-d346b13.zip` holds what a gateway of that commit left behind: a key, its user, two conversations
and the KV blocks of both, made with the tiny model. `manifest.json` next to the databases lists their contents. The
archive was made at that commit by `python -m tests.support.stored_state tests/fixtures/state-d346b13.zip`.
"""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
import tempfile
import zipfile
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Final

import httpx
import msgspec

from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR, Gateway
from tests.support.tiny_model import write_tiny_model

ARCHIVE: Final = Path(__file__).parent / "fixtures" / "state-d346b13.zip"
MANIFEST: Final = "manifest.json"
FOREVER: Final = 1e9
"""The longest `cache_ttl` in seconds: the fixture must not expire."""
FILES: Final = ("cache.key", "conversations.db", "users.db", "blocks.db")


class Stored(msgspec.Struct):
    """One conversation of the fixture: its last response, and the tokens of which that left KV."""

    id: str
    text: str
    total_tokens: int


class Manifest(msgspec.Struct):
    """What the fixture holds."""

    model: str
    """SHA-256 of the tiny model's file."""
    build: str
    """Version of llama-cpp-python: blocks are hits for the same model and build only."""
    user: str
    key: str
    conversations: list[Stored]


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unpack(folder: Path) -> Manifest:
    """Unpack the fixture into `folder` with the modes that a gateway gives its files."""
    folder.mkdir(mode=0o700, parents=True)
    with zipfile.ZipFile(ARCHIVE) as archive:
        for name in FILES:
            (folder / name).touch(mode=0o600)
            (folder / name).write_bytes(archive.read(name))
        return msgspec.json.decode(archive.read(MANIFEST), type=Manifest)


def converse(gateway: Gateway, key: str, *texts: str) -> Stored:
    """A conversation of one turn for each text."""
    previous, answer = None, httpx.Response(500)
    for text in texts:
        body = {"input": text, "previous_response_id": previous, "max_output_tokens": 8, "seed": 1}
        answer = gateway.post("/v1/responses", body, Authorization=f"Bearer {key}")
        previous = answer.raise_for_status().json()["id"]
    response = answer.json()
    said = response["output"][0]["content"][0]["text"]
    return Stored(response["id"], said, response["usage"]["total_tokens"])


def merge_log(path: Path) -> None:
    """Write the log of a database back into it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def make(archive: Path) -> None:
    """Write the fixture as this version of the code makes it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, state = write_tiny_model(folder / "tiny.gguf"), folder / "state"
        command = [*SAMOVAR, "keys", "add", "anna", f"--state-dir={state}"]
        added = subprocess.run(command, env=CHILD_ENVIRONMENT, capture_output=True, text=True, check=True)
        key = added.stdout.strip()
        with Gateway(state, model=model, context=512, engines=1, cache_ttl=FOREVER) as gateway:
            conversations = [
                converse(gateway, key, "In the kitchen stands a samovar. " * 4, "And who drinks from it?"),
                converse(gateway, key, "茶炊是什么?"),
            ]
        manifest = Manifest(digest(model), version("llama-cpp-python"), "anna", key, conversations)
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
            packed.writestr(MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
            for name in FILES:
                if name.endswith(".db"):
                    merge_log(state / name)
                packed.write(state / name, name)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
