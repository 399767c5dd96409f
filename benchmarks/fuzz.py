"""Malformed and hostile requests: does each get the right error code, and does the gateway stay the same size?

python -m benchmarks.fuzz [--count 100000] [--seed 0]: sends them to a gateway with the embedded model over many
connections; prints the number of correct answers, each wrong one, and the gateway's memory before and after. The same
seed generates the same requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import uvloop
from websockets.asyncio.client import ClientConnection, connect

from benchmarks import hostile
from benchmarks.command import leave_on_sigterm
from benchmarks.figures import Figure, publish
from benchmarks.hostile import junk, text
from benchmarks.machine import embedded, machine
from benchmarks.servers import Server, samovar

COUNT: Final = 100_000
SOCKETS: Final = 8
ANSWER_SECONDS: Final = 30.0
REQUESTS_SHARE: Final = 0.1
"""Share of requests that are sent over HTTP."""
RAW_SHARE: Final = 0.02
"""Share of messages that are not valid WebSocket frames or HTTP; each ends its connection."""
HOSTILE_SHARE: Final = 0.02
"""Share of requests that are valid JSON and nearly correct (hostile.py); an engine answers many of them."""
TERMINAL: Final = ("response.completed", "response.incomplete", "response.failed", "error")

Random = random.Random
Data = str | bytes


@dataclass(frozen=True)
class Frame:
    """A malformed message, and the error codes that are correct for it."""

    data: Data
    codes: frozenset[str]


def _create(**fields: Any) -> str:
    return json.dumps({"type": "response.create", "input": "x", "max_output_tokens": 1, **fields})


def _not_json(draw: Random) -> Data:
    """Return truncated or garbled JSON, or bytes that are not text."""
    whole = _create(metadata={"a": text(draw)})
    cut = whole[: draw.randrange(len(whole) - 1)]
    kinds: list[Data] = [cut, cut + "}" * 40, "NaN", "", whole + whole, draw.randbytes(20) + b"\xff", "[" * 100_000]
    return draw.choice(kinds)


def _not_an_object(draw: Random) -> Data:
    values = [None, True, 1, -0.5, "response.create", [], [{"type": "response.create"}], text(draw)]
    return json.dumps(draw.choice(values))


def _wrong_type(draw: Random) -> Data:
    name = draw.choice(["response.crate", "", "session.update", "response.created", text(draw)])
    return json.dumps({"type": draw.choice([name, None, 7, [], {}]), "input": "x"})


def _unsupported(draw: Random) -> Data:
    """Return a request for something that no answer here can have."""
    wanted: list[dict[str, Any]] = [
        {"audio": {"voice": text(draw)}},
        {"modalities": ["text", "audio"]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": text(draw)}]}]},
        {"tools": [{"type": f"x_{text(draw)}"}], "tool_choice": "required"},
        {"tool_choice": {"type": "web_search"}},
    ]
    return _create(**draw.choice(wanted))


def _wrong_value(draw: Random) -> Data:
    """Return a request with a known field that is out of bounds or of another type."""
    wrong: dict[str, list[Any]] = {
        "input": [7, True, {}, [7], [{"role": "nobody", "content": "x"}], [{"role": "user", "content": [7]}]],
        "model": [7, [], {}],
        "max_output_tokens": [0, -2, 1.5, "1", True, 1 << 80],
        "temperature": [-0.1, 2.1, "0", []],
        "top_p": [-1, 1.1, "x"],
        "top_k": [-2, 0.5, "x"],
        "min_p": [2, []],
        "presence_penalty": [-2.1, 3, {}],
        "repeat_penalty": [0, 2.5],
        "seed": [-2, 1 << 63, 0.1],
        "stop": [7, [7], ["a"] * 5, [""], ""],
        "logit_bias": [{"x": 1}, {"1": 101}, {"999999999": 1}, [], 7],
        "metadata": [{"a": 7}, {"k" * 65: "v"}, {"k": "v" * 513}, {f"{n}": "" for n in range(17)}],
        "store": ["yes", 1],
        "truncation": ["sometimes", 7],
        "generate": ["no", 0],
        "stream_id": ["", "a b", "x" * 257, 7, "é"],
    }
    name = draw.choice(list(wrong))
    return _create(**{name: draw.choice(wrong[name])})


def _cancel(draw: Random) -> Data:
    response = draw.choice([f"resp_{draw.randrange(1 << 64):032x}", "", text(draw)])
    return json.dumps({"type": "response.cancel", "response_id": response})


def _nested(draw: Random) -> Data:
    depth = draw.choice([200, 2_000, 50_000])
    return _create(metadata=0).replace('"metadata": 0', '"metadata": ' + '{"a":' * depth + "0" + "}" * depth)


def _anything(draw: Random) -> Data:
    return json.dumps({"type": "response.create", **{text(draw): junk(draw) for _ in range(4)}, "audio": {}})


def codes(*names: str) -> frozenset[str]:
    """Return the set of codes of which one must be the answer."""
    return frozenset(names)


Kind = tuple[int, Callable[[Random], Data], frozenset[str]]
"""(Weight, generator, codes of which one must be the answer)."""
KINDS: Final[list[Kind]] = [
    (20, _not_json, codes("invalid_json")),
    (10, _not_an_object, codes("invalid_request")),
    (10, _wrong_type, codes("invalid_request")),
    (10, _unsupported, codes("unsupported_parameter")),
    (25, _wrong_value, codes("invalid_request")),
    (10, _cancel, codes("invalid_request")),
    (2, _nested, codes("invalid_json", "invalid_request")),
    (10, _anything, codes("invalid_request", "unsupported_parameter")),
    (5, lambda draw: _create(model="gpt-" + text(draw)), codes("model_not_found")),
    (5, lambda draw: _create(previous_response_id="resp_" + text(draw)), codes("previous_response_not_found")),
    (2, lambda draw: _create(input=f"{draw.random()} " * 800), codes("context_length_exceeded")),
    (1, lambda _: _create(input="x" * (1 << 20)), codes("message_too_large")),
]


BODIES: Final = [kind for kind in KINDS if kind[1] is not _wrong_type]
"""Kinds that are also malformed as the body of an HTTP request, which needs no type."""


NEARLY_RIGHT: Final = codes(
    "response.completed", "response.incomplete", "invalid_request", "unsupported_parameter",
    "previous_response_not_found", "context_length_exceeded",
)  # fmt: skip
"""Accepted outcomes of a hostile request."""


def frames(count: int, draw: Random, kinds: list[Kind] = KINDS) -> Iterable[Frame]:
    """Yield `count` malformed frames."""
    weights = [weight for weight, _, _ in kinds]
    for _, make, right in draw.choices(kinds, weights, k=count):
        yield Frame(make(draw), right)


@dataclass
class Tally:
    """Counts of correct and wrong answers."""

    right: int = 0
    wrong: Counter[str] = field(default_factory=Counter)

    def count(self, what: Data, code: str, right: frozenset[str]) -> None:
        """Count the answer `code` to the message `what`, for which `right` are the correct codes."""
        if code in right:
            self.right += 1
        else:
            self.wrong[f"{code} for {what[:100]!r}, not {'/'.join(sorted(right))}"] += 1


async def send_frames(url: str, batch: list[Frame], tally: Tally) -> None:
    """Send frames over one connection, which must stay open, and check each answer."""
    async with connect(url, compression=None, max_size=None) as socket:
        for frame in batch:
            await socket.send(frame.data)
            tally.count(frame.data, await _code(socket), frame.codes)


async def _code(socket: ClientConnection) -> str:
    async with asyncio.timeout(ANSWER_SECONDS):
        event = json.loads(await socket.recv())
    return str(event["error"]["code"]) if event["type"] == "error" else str(event["type"])


async def send_requests(url: str, count: int, draw: Random, tally: Tally) -> None:
    """Malformed HTTP requests: each is refused with a status in the four hundreds and an error of docs/api.md."""
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_SECONDS) as client:
        for _ in range(count):
            [frame] = frames(1, draw, BODIES)
            body = frame.data if isinstance(frame.data, bytes) else frame.data.encode("utf-8", "surrogatepass")
            kind = draw.choice(["application/json"] * 6 + ["text/plain", "", "\u00e9"])
            path = draw.choice(["/v1/responses"] * 6 + [f"/v1/{rest}" for rest in ("nothing", "responses/x%00")])
            method = draw.choice(["POST"] * 8 + ["PUT", "DELETE", "PATCH", "BREW"])
            headers = {b"content-type": kind.encode("latin-1"), b"x-junk": draw.choice([b"", b"\xff\xfe", b"a" * 2000])}
            if draw.random() < 0.1:
                headers[b"host"] = draw.choice([b"evil.example", b"", b"[", b"a b", b"\xff"])
            try:
                answer = await client.request(method, path, content=body, headers=list(headers.items()))
            except httpx.HTTPError as error:
                tally.wrong[f"{type(error).__name__} for {method} {path} {body[:80]!r}"] += 1
                continue
            found = "4xx" if 400 <= answer.status_code < 500 else f"{answer.status_code}"
            tally.count(f"{method} {path} {kind} ".encode() + body, found, codes("4xx"))


async def send_hostile(url: str, count: int, draw: Random, tally: Tally) -> None:
    """Send hostile requests in lanes of one connection, which must stay open, and over HTTP: none may be a 5xx."""
    async with connect(url.replace("http", "ws", 1) + "/v1/responses", compression=None, max_size=None) as socket:
        for _ in range(count // 2):
            lane = draw.choice([{}, {"stream_id": "a"}, {"stream_id": "b"}])
            data = json.dumps({"type": "response.create", **hostile.body(draw), **lane})
            await socket.send(data)
            tally.count(data, await _ending(socket), NEARLY_RIGHT)
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_SECONDS) as client:
        for _ in range(count - count // 2):
            path, make = draw.choice(
                [
                    ("responses", hostile.body),
                    ("responses/input_tokens", hostile.body),
                    ("chat/completions", hostile.chat_body),
                ]
            )
            body = make(draw) | draw.choice([{}, {}, {"stream": True}])
            answer = await client.post(f"/v1/{path}", json=body)
            found = "4xx" if 400 <= answer.status_code < 500 else f"{answer.status_code}"
            if "internal_error" in answer.text:
                found = "internal_error"
            tally.count(f"{path} {json.dumps(body)}", found, codes("200", "4xx"))


async def _ending(socket: ClientConnection) -> str:
    """Return how the pending request ended: the type of its last event, or the code of its error."""
    async with asyncio.timeout(ANSWER_SECONDS):
        while (event := json.loads(await socket.recv()))["type"] not in TERMINAL:
            pass
    error = event.get("error") or (event.get("response") or {}).get("error")
    return str(error["code"] if error else event["type"])


def _masked(opcode: int, payload: bytes, *, mask: bool = True) -> bytes:
    return bytes([opcode, (0x80 if mask else 0) | len(payload)]) + (b"\0\0\0\0" if mask else b"") + payload


async def send_raw(port: int, count: int, draw: Random, tally: Tally) -> None:
    """Send bytes that are not WebSocket frames or HTTP: the gateway must close, with the RFC's close code if any."""
    upgrade = (
        b"GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    broken = [
        (_masked(0x81, b"x", mask=False), 1002),
        (_masked(0xF1, b"x"), 1002),
        (_masked(0x83, b"x"), 1002),
        (_masked(0x09, b"x"), 1002),
        (_masked(0x80, b"x"), 1002),
        (_masked(0x88, b"\x03"), 1002),
        (_masked(0x81, b"\xff\xfe"), 1007),
        (b"\x81\xff\x00\x00\x00\x00\x02\x00\x00\x00\0\0\0\0", 1009),
    ]
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            if draw.random() < 0.5:
                frame, close = draw.choice(broken)
                writer.write(upgrade)
                await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER_SECONDS)
                writer.write(frame)
                after = await asyncio.wait_for(reader.read(), ANSWER_SECONDS)
                code = str(int.from_bytes(after[2:4])) if after[:1] == b"\x88" else f"{after[:20]!r}"
                tally.count(frame, code, codes(str(close)))
            else:
                head = draw.choice([b"", b"GET ", b"POST /v1/responses HTTP/9.9\r\n\r\n", b"\x16\x03\x01"])
                junk = head + draw.randbytes(40) + b"\r\n\r\n"
                writer.write(junk)
                writer.write_eof()
                answer = await asyncio.wait_for(reader.read(), ANSWER_SECONDS)
                refused = answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505"))
                tally.count(junk, "refused" if refused else f"{answer[:40]!r}", codes("refused"))
        except (ConnectionError, TimeoutError) as error:
            tally.count(b"raw", "refused" if isinstance(error, ConnectionError) else "silence", codes("refused"))
        finally:
            writer.close()


async def send_all(server_port: int, count: int, seed: int) -> Tally:
    """Send all kinds of messages over several concurrent connections."""
    tally, draw = Tally(), Random(seed)
    url = f"http://127.0.0.1:{server_port}"
    requests, raw, nearly = (round(count * share) for share in (REQUESTS_SHARE, RAW_SHARE, HOSTILE_SHARE))
    per_socket = (count - requests - raw - nearly) // SOCKETS
    batches = [frames(per_socket, Random(f"{seed} {number}")) for number in range(SOCKETS)]
    await asyncio.gather(
        *(send_frames(url.replace("http", "ws") + "/v1/responses", list(batch), tally) for batch in batches),
        send_requests(url, requests, Random(draw.random()), tally),
        send_raw(server_port, raw, Random(draw.random()), tally),
        send_hostile(url, nearly, Random(draw.random()), tally),
    )
    return tally


async def measure(server: Server, count: int, seed: int) -> Tally:
    """Send all messages and measure the gateway's memory before and after."""
    await send_all(server.port, max(1000, count // 20), seed + 1)  # one-time loads and caches are not leaks
    await asyncio.sleep(2)
    before = server.process.memory_info().rss
    began = time.monotonic()
    tally = await send_all(server.port, count, seed)
    seconds = time.monotonic() - began
    await asyncio.sleep(2)
    after = server.process.memory_info().rss
    print(f"  {tally.right:,} correct answers in {seconds:.0f} s")
    for answer, times in tally.wrong.most_common(20):
        print(f"  {times:6} × {answer}")
    wrong = float(sum(tally.wrong.values()))
    publish(
        [
            Figure(
                benchmark="fuzz", name=f"{count:,} malformed messages: wrong answers", values=[wrong], unit="", goal=0
            ),
            Figure(
                benchmark="fuzz",
                name=f"{count:,} malformed messages: growth of the gateway",
                values=[100 * (after / before - 1)],
                unit="%",
                goal=5.0,
            ),
        ]
    )
    return tally


def main() -> None:
    """Measure and print; exit with 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    leave_on_sigterm()
    with samovar(embedded(), messages_per_minute=100_000_000, connections_per_address=1000) as server:
        print(f"{options.count:,} malformed frames and requests, seed {options.seed}, {machine()}", flush=True)
        tally = uvloop.run(measure(server, options.count, options.seed))
    if tally.wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
