"""Copies what Samovar must not lose, while it runs: conversations, users, and the key without which neither is of use.

    python deploy/backup.py STATE_DIR FOLDER      makes FOLDER/samovar-2026-11-25T190000/, readable by its owner alone

KV blocks are left out: they are computed again. To restore, stop the gateway, copy the files into an empty state folder
and start it. Nothing but Python's standard library is needed. Exit code 1: nothing was copied, and the line says why.
A key that lies elsewhere (`cache_key`) is not copied, and a line says so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import sys
import time
from pathlib import Path

DATABASES = ("conversations.db", "users.db")
FILES = ("cache.key",)


def main(arguments: list[str]) -> int:
    """Back up, and say where; the exit code."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        made = back_up(Path(arguments[0]), Path(arguments[1]))
        print(made)
    except (OSError, sqlite3.Error) as error:
        print(f"Nothing was backed up: {error}", file=sys.stderr)
        return 1
    for name in FILES:
        if not (made / name).exists():  # cache_key names another place, or is the key itself
            print(
                f"{arguments[0]} holds no {name}: keep a copy of what cache_key names, too, "
                "as without it nobody can read this backup.",
                file=sys.stderr,
            )
    return 0


def back_up(state: Path, folder: Path) -> Path:
    """The new folder, which appears whole or not at all. Raises OSError or sqlite3.Error."""
    os.umask(0o077)
    if not (state / DATABASES[0]).is_file():
        raise FileNotFoundError(f"{state} holds no {DATABASES[0]}; is it the state_dir?")
    target = folder / f"samovar-{time.strftime('%Y-%m-%dT%H%M%S')}"
    draft = folder / f".{target.name}.{os.getpid()}"
    draft.mkdir(parents=True)
    try:
        for name in DATABASES:
            if (state / name).exists():
                copy_database(state / name, draft / name)
        for name in FILES:
            if (state / name).exists():
                shutil.copyfile(state / name, draft / name)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft)
        raise
    return target


def copy_database(source: Path, target: Path) -> None:
    """Copy a database that is in use with SQLite's backup: a snapshot of one moment in one file, without a log."""
    address = f"{source.absolute().as_uri()}?mode=ro"
    with (
        contextlib.closing(sqlite3.connect(address, uri=True)) as read,
        contextlib.closing(sqlite3.connect(target)) as written,
    ):
        try:
            read.backup(written)
            [[verdict]] = written.execute("PRAGMA integrity_check(1)")
        except sqlite3.Error as error:
            raise sqlite3.DatabaseError(f"{source}: {error}") from error
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"{source} is damaged: {verdict}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
