"""The routes beside responses and chat completions: models, raw completions, tokens; and the spellings of paths."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from gateway.config.settings import load
from gateway.errors import ApiError
from gateway.models import served
from gateway.models.catalogue import ModelNotAvailableError
from gateway.protocol.text import TextCreate, TextRequest, read_text
from gateway.transport import header_timeout
from gateway.transport.intake import INTAKE, Intake
from tests.process.test_keys import bearer
from tests.support.commands import keys
from tests.support.running import Gateway
from tests.support.serving import serving

# Byte 65 is the letter A; without a bias a random model may end its answer at any token.
ENDLESS: dict[str, Any] = {"logit_bias": {"65": 100}, "temperature": 0}


class Server:
    """A gateway with one key, and that key."""

    def __init__(self, gateway: Gateway, key: str) -> None:
        self.gateway = gateway
        self.headers = bearer(key)
        self.key = key

    def get(self, path: str) -> httpx.Response:
        return self.gateway.get(path, **self.headers)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.gateway.post(path, body, **self.headers)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Server]:
    state = tmp_path_factory.mktemp("routes") / "state"
    key = keys(state, "add", "anna")
    with Gateway(state, model=tiny_model, aliases="gpt-4o-mini=tiny org/model=tiny", root_path="/ai") as gateway:
        yield Server(gateway, key)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(api_key=server.key, base_url=server.gateway.url + "/v1", max_retries=0, timeout=60) as client:
        yield client


def test_models_are_listed_and_retrieved_under_all_their_names(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "gpt-4o-mini", "org/model"]
    for name in ("tiny", "gpt-4o-mini", "org/model"):
        assert client.models.retrieve(name).id == name
    with pytest.raises(NotFoundError) as unknown:
        client.models.retrieve("gpt-5")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")


def test_an_alias_is_served_by_every_api_and_other_names_are_not(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": "gpt-4o-mini", "extra_body": ENDLESS}
    chat = client.chat.completions.create(messages=[{"role": "user", "content": "x"}], max_tokens=2, **fields)
    assert chat.choices[0].message.content == "AA"
    assert client.responses.create(input="x", max_output_tokens=2, **fields).output_text == "AA"
    assert client.completions.create(prompt="x", max_tokens=2, **fields).choices[0].text == "AA"
    with pytest.raises(NotFoundError, match="to serve it under other names, set aliases"):
        client.completions.create(model="gpt-5", prompt="x")


def test_the_alias_star_takes_every_name_and_an_alias_of_an_unknown_model_is_refused_at_start(
    tmp_path: Path, tiny_model: Path
) -> None:
    flags = {"model": str(tiny_model), "state_dir": str(tmp_path)}
    model = served.load(load({**flags, "aliases": f"*={tiny_model}"}))
    model.check_name("anything")
    assert model.listed_aliases == []
    with pytest.raises(ModelNotAvailableError, match="aliases: x stands for other, which is not served; tiny is"):
        served.load(load({**flags, "aliases": "x=other"}))


def test_a_raw_prompt_is_continued_as_it_is_without_template_and_echo(client: OpenAI) -> None:
    found = client.completions.create(model="tiny", prompt="Once", max_tokens=3, logprobs=2, extra_body=ENDLESS)
    assert found.id.startswith("cmpl-")
    assert (found.object, found.model, found.choices[0].finish_reason) == ("text_completion", "tiny", "length")
    assert found.choices[0].text == "AAA"
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (4, 3)
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.text_offset) == (["A", "A", "A"], [0, 1, 2])
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert [len(top) for top in logprobs.top_logprobs] == [2, 2, 2]


def test_the_chunks_of_a_completion_make_the_same_text(client: OpenAI, server: Server) -> None:
    body: dict[str, Any] = {"model": "tiny", "prompt": "Once upon", "max_tokens": 4, "extra_body": ENDLESS}
    whole = client.completions.create(**body).choices[0].text
    chunks = list(client.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole == "AAAA"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 9
    raw = server.post("/v1/completions", prompt="x", max_tokens=1, stream=True, **ENDLESS)
    assert raw.text.endswith("data: [DONE]\n\n")


def test_a_prompt_of_token_ids_or_control_tokens_reuses_the_kv_of_the_same_tokens(server: Server) -> None:
    text = "<|im_start|>" + "x" * 200
    ids = server.post("/tokenize", content=text).json()["tokens"]
    assert len(ids) == 201
    first = server.post("/v1/completions", prompt=text, max_tokens=1, **ENDLESS).json()["usage"]
    assert first["prompt_tokens"] == 201
    for prompt in (ids, [ids], [text]):
        usage = server.post("/v1/completions", prompt=prompt, max_tokens=1, **ENDLESS).json()["usage"]
        assert (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == (201, 200)


def test_a_raw_prompt_is_in_no_conversation_and_in_no_database(server: Server) -> None:
    found = server.post("/v1/completions", prompt="secret", max_tokens=1, **ENDLESS).json()
    assert server.get(f"/v1/responses/resp_{found['id'].removeprefix('cmpl-')}").status_code == 404
    assert server.post("/v1/completions", prompt="secret", max_tokens=1, store=False, **ENDLESS).status_code == 200
    messages = [{"role": "assistant", "content": "A"}, {"role": "user", "content": "x"}]
    chat = server.post("/v1/chat/completions", messages=messages, max_tokens=1, **ENDLESS).json()
    assert chat["usage"]["prompt_tokens"] == len("assistant\nA\nuser\nx\nassistant\n") + 5  # 5 control tokens
    assert b"secret" not in b"".join(file.read_bytes() for file in server.gateway.state.glob("*.db*"))


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": ["a", "b"]}, 400, "prompt"),
        ({"prompt": [1, 1 << 20]}, 400, "prompt"),
        ({"prompt": "x" * 600}, 400, "prompt"),
        ({"prompt": "x", "echo": True}, 400, "echo"),
        ({"prompt": "x", "n": 2}, 400, "n"),
        ({"prompt": "x", "suffix": "y"}, 400, "suffix"),
        ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": "x", "stop": ""}, 400, "stop"),
        ({}, 400, "prompt"),
    ],
)
def test_a_completion_that_cannot_be_made_is_refused_by_name(
    server: Server, fields: dict[str, Any], status: int, param: str
) -> None:
    answer = server.post("/v1/completions", **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_fields_of_a_completion_keep_their_meaning() -> None:
    request, body = read_text(
        {"prompt": "x", "max_tokens": -1, "seed": 3, "stop": ["\n"], "logprobs": 0, "store": False}
    )
    assert (request.max_output_tokens, request.seed, request.stops, request.logprobs) == (None, 3, ("\n",), 0)
    assert (request.is_stored, request.is_ephemeral, request.items, body.stream) == (False, True, [], None)
    assert isinstance(request, TextRequest)
    assert isinstance(body, TextCreate)
    with pytest.raises(ApiError, match="prompt"):
        read_text({"prompt": {"text": "x"}})


def test_tokens_become_text_and_text_becomes_tokens_as_at_llama_server(server: Server) -> None:
    text = "tea 茶<|im_end|>"
    special = server.post("/tokenize", content=text).json()["tokens"]
    plain = server.post("/tokenize", content=text, parse_special=False).json()["tokens"]
    assert len(special) == 4 + 3 + 1 < len(plain)
    for tokens in (special, plain):
        assert server.post("/detokenize", tokens=tokens).json() == {"content": text}
    pieces = server.post("/tokenize", content=text, with_pieces=True).json()["tokens"]
    assert [entry["id"] for entry in pieces] == special
    assert pieces[0]["piece"] == "t"
    assert bytes(byte for entry in pieces[4:7] for byte in entry["piece"]).decode() == "茶"
    assert pieces[-1]["piece"] == "<|im_end|>"
    assert server.post("/detokenize", tokens=[1 << 20]).json()["error"]["param"] == "tokens"
    assert server.post("/tokenize", content="", add_special=True).json() == {"tokens": []}
    assert server.post("/tokenize", content=text, add_special=None, with_pieces=None).json() == {"tokens": special}


def test_embeddings_are_refused_with_the_reason(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="computes no embeddings") as refused:
        client.embeddings.create(model="tiny", input="x")
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "model")


@pytest.mark.parametrize(
    "path",
    ["/v1/models", "/models", "/v1//models", "//v1/models/", "/v1/v1/models", "/ai/v1/models", "/ai/models/"],
)
def test_every_spelling_of_a_path_is_served_and_needs_the_key(server: Server, path: str) -> None:
    found = server.get(path)
    assert (found.status_code, found.json()["data"][0]["id"]) == (200, "tiny")
    assert server.gateway.get(path).status_code == 401
    refused = 'samovar_requests_total{code="invalid_api_key",route="models",status="rejected"}'
    assert refused in server.gateway.get("/metrics").text


def test_the_api_answers_without_v1(server: Server) -> None:
    with OpenAI(api_key=server.key, base_url=server.gateway.url, max_retries=0, timeout=60) as bare:
        fields: dict[str, Any] = {"model": "tiny", "extra_body": ENDLESS}
        assert bare.completions.create(prompt="x", max_tokens=1, **fields).choices[0].text == "A"
        response = bare.responses.create(input="x", max_output_tokens=1, **fields)
        assert bare.responses.retrieve(response.id) == response
        messages: Any = [{"role": "user", "content": "x"}]
        assert bare.chat.completions.create(messages=messages, max_tokens=1, **fields).choices[0].message.content == "A"


def test_options_and_head_need_no_key_or_no_body(server: Server) -> None:
    url = server.gateway.url
    assert httpx.options(f"{url}/v1/chat/completions").headers["allow"] == "POST, OPTIONS"
    assert httpx.options(f"{url}/v1/models").headers["allow"] == "GET, HEAD, OPTIONS"
    head = httpx.head(f"{url}/v1/models", headers=server.headers)
    assert (head.status_code, head.content) == (200, b"")
    assert httpx.head(f"{url}/health").status_code == 200
    redirect = httpx.get(f"{url}/ai").headers
    assert (redirect["location"], redirect["x-request-id"][:4]) == ("/ai/", "req_")
    assert httpx.get(f"{url}/ai/static/app.js").status_code == 200


async def raw(server: Server, head: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON body of the answer to a request head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.gateway.url.rpartition(":")[2]))
    writer.write((head + "\r\n\r\n").encode())
    answer, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(answer.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://127.0.0.1:8000/v1/models", "127.0.0.1", 200),
        ("HTTP://localhost/models/?a=b", "evil.example", 200),
        ("https://localhost/ai/v1/models", "localhost", 200),
        ("http://evil.example/v1/models", "localhost", 403),
        ("http:///v1/models", "localhost", 403),
        ("http://localhost/nowhere", "localhost", 404),
        ("ftp://localhost/v1/models", "localhost", 404),
    ],
)
async def test_a_target_in_absolute_form_is_served_and_its_host_counts(
    server: Server, target: str, host: str, status: int
) -> None:
    key = server.headers["Authorization"]
    head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {key}\r\nConnection: close"
    assert (await raw(server, head))[0] == status


UPGRADE = (
    "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
    "\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
)


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [("/v1/nowhere", "localhost", 404), ("/v1/models", "localhost", 404), ("/", "localhost", 404),
     ("/v1/responses", "evil.example", 403)],
)  # fmt: skip
async def test_a_websocket_that_is_refused_gets_the_reason_and_the_log_no_error(
    server: Server, path: str, host: str, status: int
) -> None:
    key = server.headers["Authorization"]
    found, body = await raw(server, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {key}{UPGRADE}")
    assert (found, body["error"]["code"]) == (status, "invalid_request")
    assert server.get("/healthz").status_code == 200  # the log has the line by now
    assert '"level": "error"' not in server.gateway.log()


def test_the_folder_of_static_files_is_not_found_and_does_not_redirect_for_ever(server: Server) -> None:
    for path in ("/static", "/static/"):
        assert httpx.get(server.gateway.url + path, follow_redirects=True).status_code == 404


def test_integral_floats_are_integers_in_lists_and_queries_too(server: Server) -> None:
    assert server.post("/detokenize", tokens=[72.0, 105]).json() == server.post("/detokenize", tokens=[72, 105]).json()
    assert server.post("/detokenize", tokens=[7.5]).status_code == 400
    for prompt in ([65.0, 66], [[65, 66.0]], [65.0]):
        assert server.post("/completions", prompt=prompt, max_tokens=1.0, **ENDLESS).json()["choices"][0]["text"] == "A"
    response = server.post("/responses", input="x", max_output_tokens=1.0, **ENDLESS).json()
    stream = server.get(f"/responses/{response['id']}?stream=true&starting_after=1.0")
    assert '"sequence_number":2' in stream.text


async def test_a_health_check_over_http_1_0_without_host_is_answered(server: Server) -> None:
    port = int(server.gateway.url.rpartition(":")[2])
    for path in ("/healthz", "/health", "/readyz"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert head.startswith(b"HTTP/1.1 200")
        assert json.loads(body)["status"] in ("alive", "ready")


async def test_an_idle_connection_outlives_the_time_for_a_head_and_an_incomplete_head_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def respond(_: Request) -> PlainTextResponse:
        return PlainTextResponse("served")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield {INTAKE: Intake()}

    monkeypatch.setattr(header_timeout, "HEAD_SECONDS", 0.2)
    whole = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving(Starlette(routes=[Route("/", respond)], lifespan=lifespan)) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        for _ in range(2):
            writer.write(whole)
            assert await reader.readuntil(b"served")
            await asyncio.sleep(1)
        writer.write(whole + whole[:10])
        assert (await reader.read()).endswith(b"served")  # then the server closed
        writer.close()
