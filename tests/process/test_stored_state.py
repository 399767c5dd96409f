"""Every version opens what commit d346b13 wrote: its keys, its conversations and its KV blocks."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.running import Gateway
from tests.support.stored_state import digest, unpack


@pytest.mark.slow
def test_a_state_folder_of_d346b13_is_opened_with_its_key_conversations_and_blocks(
    tmp_path: Path, tiny_model: Path
) -> None:
    state = tmp_path / "state"
    manifest = unpack(state)
    same_build = (digest(tiny_model), version("llama-cpp-python")) == (manifest.model, manifest.build)
    assert same_build or version("llama-cpp-python") != manifest.build, "the tiny model is not made as it was"
    with Gateway(state, model=tiny_model, context=512, engines=1) as gateway:
        assert gateway.get("/v1/models").status_code == 401
        authorization = {"Authorization": f"Bearer {manifest.key}"}
        for stored in manifest.conversations:
            found = gateway.get(f"/v1/responses/{stored.id}", **authorization).json()
            assert found["output"][0]["content"][0]["text"] == stored.text
            body = {"input": "?", "previous_response_id": stored.id, "max_output_tokens": 2}
            answer = gateway.post("/v1/responses", body, **authorization).json()
            cached = answer["usage"]["input_tokens_details"]["cached_tokens"]
            # All that the model computed: the last token of an answer is drawn, and never was an input.
            assert cached == (stored.total_tokens - 1 if same_build else 0)
        for stored in manifest.conversations:
            deleted = gateway.delete(f"/v1/responses/{stored.id}", **authorization)
            assert deleted.json()["deleted"] is True
            assert gateway.get(f"/v1/responses/{stored.id}", **authorization).status_code == 404


def test_the_fixture_holds_what_its_manifest_says(tmp_path: Path) -> None:
    manifest = unpack(tmp_path / "state")
    with closing(sqlite3.connect(tmp_path / "state" / "users.db")) as users:
        assert users.execute("SELECT name FROM users").fetchall() == [(manifest.user,)]
    with closing(sqlite3.connect(tmp_path / "state" / "conversations.db")) as conversations:
        ids = {id_ for (id_,) in conversations.execute("SELECT id FROM records WHERE progress = 2")}
    assert ids > {stored.id for stored in manifest.conversations}
    with closing(sqlite3.connect(tmp_path / "state" / "blocks.db")) as blocks:
        assert blocks.execute("SELECT count(*) FROM states").fetchone()[0] >= len(manifest.conversations)
