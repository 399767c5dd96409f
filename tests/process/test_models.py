"""Models by name: the catalogue, the library, and downloads from a hub that fail in every way a network can."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.cli import main
from gateway.models.catalogue import CATALOGUE, EMBEDDED, RECOMMENDED, ModelNotAvailableError, Published, find
from gateway.models.hub import PullError, pull
from gateway.models.library import Library, Record
from tests.support.hub import REVISION, Hub
from tests.support.running import CHILD_ENVIRONMENT, SAMOVAR, Gateway

NAME = "qwen2.5-0.5b-instruct-q4_0"
PUBLISHED = CATALOGUE[NAME]


@pytest.fixture
def content() -> bytes:
    """A megabyte that is not a model, for tests of the download."""
    return os.urandom(1 << 20)


@pytest.fixture
def hub(content: bytes) -> Iterator[Hub]:
    """An endpoint that serves the data."""
    with Hub(content) as hub:
        yield hub


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """An empty library."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return Library()


def bring(library: Library, hub: Hub, published: Published = PUBLISHED, **others: Any) -> Record:
    """Pull without waiting between connections."""
    options = {"progress": lambda *_, **__: None, "pause": lambda _: None, **others}
    return pull(published, library, endpoint=hub.url, **options)


def leftovers(library: Library) -> list[str]:
    """The files in the library other than locks."""
    return sorted(path.name for path in library.folder.iterdir() if path.suffix != ".lock")


def test_a_pulled_model_is_verified_recorded_and_found_by_its_name(library: Library, hub: Hub, content: bytes) -> None:
    reported: list[tuple[int, bool]] = []
    record = bring(library, hub, progress=lambda done, _, verifying: reported.append((done, verifying)))
    assert record == library.record(PUBLISHED.file)
    assert (record.sha256, record.size, record.revision) == (sha256(content).hexdigest(), len(content), REVISION)
    assert find(NAME).path.read_bytes() == content
    assert leftovers(library) == [PUBLISHED.file, f"{PUBLISHED.file}.json"]
    assert reported == sorted(reported, key=lambda step: step[1])  # first the download, then the verification
    assert {(len(content), False), (len(content), True)} <= set(reported)


def test_a_model_that_is_here_is_verified_again_and_not_downloaded(library: Library, hub: Hub) -> None:
    bring(library, hub)
    bring(library, hub)
    assert len(hub.starts) == 1


def test_a_damaged_file_is_downloaded_again(library: Library, hub: Hub, content: bytes) -> None:
    bring(library, hub)
    path = library.path(PUBLISHED.file)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    bring(library, hub)
    assert path.read_bytes() == content


def test_a_file_laid_there_by_hand_is_verified_not_downloaded(library: Library, hub: Hub, content: bytes) -> None:
    library.folder.mkdir(parents=True)
    library.path(PUBLISHED.file).write_bytes(content)
    assert bring(library, hub).sha256 == sha256(content).hexdigest()
    assert hub.starts == []


def test_a_broken_download_resumes_where_it_stopped(library: Library, hub: Hub, content: bytes) -> None:
    hub.cuts = [700_000, 0, 200_000]
    pauses: list[float] = []
    bring(library, hub, pause=pauses.append)
    assert library.path(PUBLISHED.file).read_bytes() == content
    assert hub.starts[0] == 0
    assert hub.starts == sorted(hub.starts)
    assert hub.starts[-1] >= 700_000
    assert pauses == [0.0, 2.0, 0.0]


def test_a_pull_from_a_stalled_hub_fails_and_the_received_part_remains(library: Library, hub: Hub) -> None:
    hub.cuts = [600_000, *[0] * 5]
    pauses: list[float] = []
    with pytest.raises(PullError, match=r"broke at 1 MB of 1 MB .*; pull again to resume"):
        bring(library, hub, pause=pauses.append)
    assert pauses == [0.0, 2.0, 4.0, 8.0, 16.0]
    bring(library, hub)
    assert hub.starts[-1] > 0


def test_a_server_without_ranges_begins_again_and_the_file_is_right(library: Library, hub: Hub, content: bytes) -> None:
    hub.cuts, hub.ranges = [500_000], False
    bring(library, hub)
    assert library.path(PUBLISHED.file).read_bytes() == content


def test_what_differs_from_its_digest_is_deleted(library: Library, hub: Hub, content: bytes) -> None:
    hub.content = content[::-1]
    with pytest.raises(PullError, match="has another sha256"):
        bring(library, hub)
    assert leftovers(library) == []


def test_more_than_was_stated_is_not_taken(library: Library, hub: Hub, content: bytes) -> None:
    hub.content = content * 2
    with pytest.raises(PullError, match="sends more than the 1048576 bytes"):
        bring(library, hub)
    assert library.path(PUBLISHED.file).exists() is False


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"size": 5}], ids=["digest", "size"])
def test_another_file_than_the_catalogues_is_not_even_downloaded(
    library: Library, hub: Hub, change: dict[str, Any]
) -> None:
    with pytest.raises(PullError, match=f"{PUBLISHED.file} at .* differs from the catalogue"):
        bring(library, hub, replace(PUBLISHED, **change))
    assert hub.starts == []


def test_a_mirror_that_states_no_digest_is_believed_only_with_the_catalogues(
    library: Library, hub: Hub, content: bytes
) -> None:
    hub.headers["X-Linked-Etag"] = '"42"'
    with pytest.raises(PullError, match="is not a hub"):
        bring(library, hub)
    bring(library, hub, replace(PUBLISHED, sha256=sha256(content).hexdigest()))
    assert library.path(PUBLISHED.file).read_bytes() == content


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        ((404, "EntryNotFound"), "has no Qwen/Qwen2.5-0.5B-Instruct-GGUF/"),
        ((404, "RepoNotFound"), "has no Qwen/Qwen2.5-0.5B-Instruct-GGUF/"),
        ((503, ""), "answers 503; pull again later"),
        ((403, ""), "answers 403"),
    ],
)
def test_a_refusal_by_the_hub_is_reported_in_one_line(
    library: Library, hub: Hub, refusal: tuple[int, str], said: str
) -> None:
    hub.refusal = refusal
    with pytest.raises(PullError) as caught:
        bring(library, hub)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_a_hub_is_recognized(library: Library, hub: Hub) -> None:
    hub.headers.clear()
    with pytest.raises(PullError, match="is not a hub"):
        bring(library, hub)


def test_a_full_disk_is_seen_before_and_while_it_fills(
    library: Library, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(PullError, match="the disk is full; make room"):
        bring(library, hub, progress=fill)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=64 << 20))
    with pytest.raises(PullError, match="are needed and 67 MB are free; make room"):
        bring(library, hub)


def test_a_folder_that_cannot_be_made_is_an_error_in_a_line(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PullError, match="Not a directory"):
        bring(Library(tmp_path / "file" / "models"), hub)


def test_one_pull_of_a_model_runs_at_a_time(library: Library, hub: Hub) -> None:
    hub.stall = threading.Event()
    first = threading.Thread(target=bring, args=(library, hub))
    first.start()
    while not hub.sent:
        time.sleep(0.01)
    with pytest.raises(PullError, match="is being pulled by another process"):
        bring(library, hub)
    hub.stall.set()
    first.join()
    assert find(NAME).path.stat().st_size == len(hub.content)


def test_a_file_of_the_users_own_in_the_library_is_a_model_by_its_name(library: Library) -> None:
    library.folder.mkdir(parents=True)
    library.path("mine.gguf").write_bytes(b"GGUF")
    assert (find("mine").name, find("mine").path) == ("mine", library.path("mine.gguf"))


def test_names_are_unique_files_are_ggufs_and_all_but_the_embedded_one_are_published() -> None:
    assert len({published.file for published in CATALOGUE.values()}) == len(CATALOGUE) >= 5
    for published in CATALOGUE.values():
        assert published.file.endswith(".gguf")
        assert published.licence == "Apache-2.0"
        assert bool(published.repository) == (published.name != EMBEDDED)
    assert "zh" in CATALOGUE[RECOMMENDED].languages


def test_a_file_of_the_wrong_size_is_not_served_and_the_message_names_the_fix(library: Library) -> None:
    library.folder.mkdir(parents=True)
    library.path(CATALOGUE[RECOMMENDED].file).write_bytes(b"GGUF")
    fix = f"4 bytes instead of 491400032; run: samovar models pull {RECOMMENDED}"
    with pytest.raises(ModelNotAvailableError, match=fix):
        find(RECOMMENDED)


def samovar(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    env = {**CHILD_ENVIRONMENT, "LC_ALL": "C.UTF-8", **environment}
    return subprocess.run(
        [*SAMOVAR, *arguments], env=env, capture_output=True, text=True, encoding="utf-8", check=False
    )


@pytest.mark.usefixtures("library")
def test_before_a_pull_the_error_is_the_command_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["serve", "--model", NAME, "--port=0"], ["models", "path", NAME]):
        assert main(command) == 1
        assert capsys.readouterr().err.endswith(f"{NAME} is not downloaded yet; run: samovar models pull {NAME}\n")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["pull", "qwen2.5-0.5b-instruct-q4"],
            "no model is named qwen2.5-0.5b-instruct-q4 (did you mean qwen2.5-0.5b-instruct-q4_0?)",
        ),
        (["pull", "zzz"], "no model is named zzz; see: samovar models list"),
        (["pull", NAME, "--endpoint=nowhere"], "no hub answers at nowhere"),
        (["path", "zzz"], "zzz is neither a file here nor a known name"),
    ],
)
def test_a_mistake_with_models_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"samovar: {said}")
    assert error.count("\n") == 1


@pytest.mark.usefixtures("library")
def test_without_a_network_the_error_names_the_hub(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    assert main(["models", "pull", NAME, "--endpoint", endpoint]) == 1
    assert f"no hub answers at {endpoint} (" in capsys.readouterr().err


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("location", ["{path}", "http://[::1", "content"])
def test_redirects_that_lead_nowhere_are_one_line(hub: Hub, location: str, capsys: pytest.CaptureFixture[str]) -> None:
    hub.location, hub.loops = ("", True) if location == "content" else (location, False)
    assert main(["models", "pull", NAME, "--endpoint", hub.url]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"samovar: {hub.url} is not a hub (")
    assert error.endswith("); name another mirror with --endpoint\n")
    assert error.count("\n") == 1


@pytest.mark.usefixtures("library")
def test_the_list_shows_what_is_here_and_json_leaves_nothing_out(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "pull", EMBEDDED]) == 0
    assert main(["models", "pull", NAME, "--endpoint", hub.url]) == 0
    assert f"samovar serve --model {NAME}" in capsys.readouterr().out
    assert main(["models", "list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(CATALOGUE) < set(lines)
    assert sha256(hub.content).hexdigest() in lines[NAME]
    assert ("yes" in lines[NAME], "yes" in lines[RECOMMENDED]) == (True, False)
    run = samovar("models", "list", "--json", XDG_DATA_HOME=os.environ["XDG_DATA_HOME"])
    assert {row["name"]: row["here"] for row in json.loads(run.stdout)} == {
        name: name in (EMBEDDED, NAME) for name in CATALOGUE
    }


@pytest.mark.slow
def test_a_killed_pull_is_resumed_and_the_model_is_served(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setitem(CHILD_ENVIRONMENT, "XDG_DATA_HOME", str(tmp_path))
    with Hub(tiny_model.read_bytes()) as hub:
        hub.stall = threading.Event()
        command = [*SAMOVAR, "models", "pull", NAME]
        folder = tmp_path / "samovar" / "models"
        with subprocess.Popen(command, env={**CHILD_ENVIRONMENT, "HF_ENDPOINT": hub.url}) as first:
            while first.poll() is None and not any(part.stat().st_size for part in folder.glob("*.part")):
                time.sleep(0.02)
            first.kill()
        assert first.returncode == -signal.SIGKILL
        [part] = folder.glob("*.part")
        came = part.stat().st_size
        hub.stall.set()
        second = samovar("models", "pull", NAME, "--endpoint", hub.url)
        assert (second.returncode, second.stderr) == (0, "")
        assert hub.starts == [0, came]
    assert samovar("models", "path", NAME).stdout == f"{folder / PUBLISHED.file}\n"
    with Gateway(tmp_path / "state", model=NAME, context=256) as gateway:
        [model] = gateway.get("/v1/models").json()["data"]
        assert (model["id"], model["languages"][:2]) == (NAME, ["zh", "en"])
