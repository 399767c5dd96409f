"""An office in one test: page, terminal and three libraries talk to one gateway at once, each as its own user."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_openai import ChatOpenAI
from playwright.async_api import Browser, expect
from pydantic import SecretStr

from tests.support.browsing import ask, ended, messages
from tests.support.chatting import ENGLISH
from tests.support.commands import keys
from tests.support.running import SAMOVAR, Gateway, said

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),  # what these packages warn of among themselves is not ours to fix
]

TOKENS = 24
LETTERS = {"python": ("A", 65), "npm": ("B", 66), "langchain": ("C", 67)}
"""What the model is made to say to those who can ask for it; others get the nonsense that it says by itself."""
SCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ apiKey: process.env.KEY, baseURL: process.env.BASE_URL, maxRetries: 0 });
const texts = [];
let previous_response_id;
for (const input of [process.env.WORD + " one", process.env.WORD + " two"]) {
  const stream = await client.responses.create({
    model: "tiny", input, previous_response_id, stream: true, logit_bias: { 66: 100 }, temperature: 0,
  });
  let text = "";
  for await (const event of stream) {
    if (event.type === "response.output_text.delta") text += event.delta;
    if (event.response) previous_response_id = event.response.id;
  }
  texts.push(text);
}
console.log(JSON.stringify(texts));
"""


def word(user: str) -> str:
    """What only this user says."""
    return f"zz{user}zz"


def letters(text: str) -> str:
    """All of a text that every way of showing it leaves as it is."""
    return re.sub(r"[^A-Za-z0-9]", "", text)


class Office:
    """A gateway, its users and their keys."""

    def __init__(self, gateway: Gateway) -> None:
        """Make a key for everybody."""
        self.gateway = gateway
        names = ["page", "terminal", *LETTERS]
        self.keys = {name: self.operate("add", name) for name in names}
        self.ids = {user["id"]: user["name"] for user in json.loads(self.operate("list", "--json"))}

    def operate(self, *arguments: str) -> str:
        """`samovar keys …`."""
        return keys(self.gateway.state, *arguments)

    def get(self, user: str, path: str) -> httpx.Response:
        """A route as a user sees it."""
        return self.gateway.get(f"/v1/responses/{path}", Authorization=f"Bearer {self.keys[user]}")

    def answered(self) -> list[tuple[str, str]]:
        """By the log: who had an answer, and which."""
        lines = [json.loads(line) for line in self.gateway.log().splitlines()]
        return [(self.ids[line["tenant"]], line["response_id"]) for line in lines if line["event"] == "response"]


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Office]:
    """With a model that answers at once."""
    folder = tmp_path_factory.mktemp("office")
    with Gateway(
        folder, model=tiny_model, context=512, max_output_tokens=TOKENS, encode_ahead="no", titles=False
    ) as gateway:
        yield Office(gateway)


async def by_page(office: Office, browser: Browser) -> list[str]:
    """Two turns on the page: the answers as they are shown."""
    context = await browser.new_context(locale="en-US")
    page = await context.new_page()
    await page.goto(office.gateway.url)
    await page.get_by_test_id("key").fill(office.keys["page"])
    await page.get_by_test_id("enter").click()
    await expect(page.get_by_test_id("status")).to_have_attribute("data-state", "open")
    for turn in ("one", "two"):
        await ended(await ask(page, f"{word('page')} {turn}"), "done")
    shown = await messages(page, "assistant").locator(".message-text").all_inner_texts()
    await context.close()
    return shown


async def by_terminal(office: Office) -> list[str]:
    """Two turns by `samovar chat`, fed from a pipe: all that it printed."""
    chat = [*SAMOVAR, "chat", f"--port={office.gateway.url.rpartition(':')[2]}"]
    environment = {**ENGLISH, "SAMOVAR_API_KEY": office.keys["terminal"]}
    return [await _output(chat, environment, f"{word('terminal')} one\n{word('terminal')} two\n")]


async def by_python(office: Office) -> list[str]:
    """Two turns with the `openai` package over a WebSocket."""
    previous, texts = None, list[str]()
    async with office.gateway.connect(office.keys["python"]) as conversation:
        for turn in ("one", "two"):
            fields = {"previous_response_id": previous, "logit_bias": {"65": 100}, "temperature": 0}
            events = await conversation.ask(f"{word('python')} {turn}", **fields)
            texts.append(said(events))
            previous = events[-1].response.id
    return texts


async def by_npm(office: Office, folder: Path) -> list[str]:
    """Two streamed turns with the npm package."""
    node = shutil.which("node")
    if node is None:
        return []
    (folder / "talk.js").write_text(SCRIPT)
    environment = {**os.environ, "KEY": office.keys["npm"], "WORD": word("npm"), "BASE_URL": office.gateway.url + "/v1"}
    found: list[str] = json.loads(await _output([node, str(folder / "talk.js")], environment))
    return found


async def by_langchain(office: Office) -> list[str]:
    """Two turns with LangChain, which sends all that was said each time."""
    chat = ChatOpenAI(
        model="tiny", base_url=office.gateway.url + "/v1", api_key=SecretStr(office.keys["langchain"]), temperature=0,
        max_retries=0, logit_bias={67: 100},
    )  # fmt: skip
    history: list[Any] = []
    texts: list[str] = []
    for turn in ("one", "two"):
        history.append(("human", f"{word('langchain')} {turn}"))
        answer = await chat.ainvoke(history)
        history.append(answer)
        texts.append(str(answer.text))
    return texts


async def _output(command: list[str], environment: dict[str, str], text: str = "") -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    found, _ = await process.communicate(text.encode())
    assert process.returncode == 0, found
    return found.decode()


async def test_five_clients_at_once_receive_and_find_only_their_own_answers(
    office: Office, browser: Browser, npm_openai: Path
) -> None:
    talks = (by_page(office, browser), by_terminal(office), by_python(office), by_npm(office, npm_openai))
    received = dict(zip(office.keys, await asyncio.gather(*talks, by_langchain(office)), strict=True))
    for user, (letter, _) in LETTERS.items():
        assert received[user] == ([letter * TOKENS] * 2 if received[user] else [])
    answered = office.answered()
    assert {user for user, _ in answered} == {user for user, texts in received.items() if texts}
    for owner, response in answered:
        found = {user: office.get(user, response).status_code for user in office.keys}
        if owner == "langchain":  # chat completions are not kept
            assert set(found.values()) == {404}
            continue
        assert found == {user: 200 if user == owner else 404 for user in office.keys}
        text = office.get(owner, response).json()["output"][0]["content"][0]["text"]
        assert letters(text) in letters(" ".join(received[owner]))
        items = json.dumps(office.get(owner, f"{response}/input_items").json())
        assert [user for user in office.keys if word(user) in items] == [owner]
    assert [user for user, _ in answered].count("page") == 2
