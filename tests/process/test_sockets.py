"""Clients that fill a socket with what is no message: the gateway's memory stays as it was, and they are hung up on."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from gateway.transport.sockets import CONTROLS, FRAGMENTS
from tests.process.test_losses import TERMINAL, receive, say, wire
from tests.support.running import Gateway

UPGRADE = (
    b"GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
PING, PONG, TEXT, CONTINUATION = 0x89, 0x8A, 0x01, 0x00


def frame(opcode: int, data: bytes = b"") -> bytes:
    """A masked frame of up to 125 bytes; the mask is zero."""
    return struct.pack("!BB4x", opcode, 0x80 | len(data)) + data


@asynccontextmanager
async def opened(gateway: Gateway) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A socket that is upgraded already, and reads no more than it is asked to."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # soon full
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", int(gateway.url.rpartition(":")[2])))
    reader, writer = await asyncio.open_connection(sock=raw, limit=4096)
    writer.write(UPGRADE)
    await reader.readuntil(b"\r\n\r\n")
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def flood(writer: asyncio.StreamWriter, piece: bytes, most: int) -> int:
    """Send `piece` again and again until the gateway hangs up or `most` bytes are sent; gives the bytes sent."""
    sent = 0
    try:
        async with asyncio.timeout(30):
            while sent < most:
                writer.write(piece)
                sent += len(piece)
                await writer.drain()
    except ConnectionError:
        return sent
    return sent


async def taken(writer: asyncio.StreamWriter, data: bytes) -> bool:
    """Whether the gateway took all of `data`, which is more than the system buffers, and did not hang up."""
    # A fixed size: else the system buffers as much as the gateway leaves to a connection that it is about to close.
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    try:
        async with asyncio.timeout(30):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        return False
    return True


async def test_a_client_that_floods_control_frames_and_reads_nothing_is_disconnected(
    tmp_path: Path, tiny_model: Path
) -> None:
    with Gateway(tmp_path, model=tiny_model, context=512, messages_per_minute=100) as gateway:
        for opcode in (PING, PONG):
            async with opened(gateway) as (_, writer):
                before = gateway.process.memory_info().rss
                assert await flood(writer, frame(opcode, b"x" * 120) * 100, 64 << 20) < 64 << 20
                assert gateway.process.memory_info().rss - before < 16 << 20
        assert gateway.get("/readyz").status_code == 200


@pytest.mark.slow
async def test_pings_within_the_message_rate_are_answered_by_the_newest_pong_where_nothing_is_read(
    tmp_path: Path, tiny_model: Path
) -> None:
    with Gateway(tmp_path, model=tiny_model, context=512, messages_per_minute=1_000_000) as gateway:
        async with opened(gateway) as (reader, writer):
            before = gateway.process.memory_info().rss
            count = 200_000
            for start in range(0, count, 1000):
                writer.write(b"".join(frame(PING, b"%0120d" % number) for number in range(start, start + 1000)))
                await writer.drain()  # would wait for ever if the gateway stopped to read
            assert gateway.process.memory_info().rss - before < 16 << 20
            answers = b""
            async with asyncio.timeout(30):
                while not answers.endswith(b"%0120d" % (count - 1)):
                    answers = (answers + await reader.read(4096))[-4096:]


async def test_a_ping_now_and_then_is_answered_however_many_messages_came(tmp_path: Path, tiny_model: Path) -> None:
    with Gateway(tmp_path, model=tiny_model, context=512, messages_per_minute=2) as gateway:
        async with wire(gateway) as client:
            for _ in range(4):
                await client.send("{")
                await receive(client, "error")
            for _ in range(CONTROLS - 1):
                await (await client.ping())
            with pytest.raises(ConnectionClosed) as closed:
                for _ in range(3):
                    await (await client.ping())
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008


async def test_a_client_that_sends_endless_empty_fragments_is_disconnected(shared_server: Gateway) -> None:
    async with opened(shared_server) as (reader, writer):
        writer.write(frame(TEXT, b"{"))
        await flood(writer, frame(CONTINUATION) * (FRAGMENTS - 2), 1)
        writer.write(frame(PING, b"still here"))
        assert (await reader.readexactly(12))[2:] == b"still here"
        await flood(writer, frame(CONTINUATION) * 2, 1)
        assert int.from_bytes((await reader.readexactly(4))[2:]) == 1009


async def test_long_messages_that_do_not_end_are_bounded_for_all_connections_together(shared_server: Gateway) -> None:
    before = shared_server.process.memory_info().rss
    unended = struct.pack("!BBQ4x", 0x81, 0xFF, 16 << 20) + bytes(15 << 20)
    async with AsyncExitStack() as sockets:
        writers = [(await sockets.enter_async_context(opened(shared_server)))[1] for _ in range(8)]
        assert [await taken(writer, unended) for writer in writers] == [True] * 4 + [False] * 4
        assert shared_server.process.memory_info().rss - before < 128 << 20
        async with wire(shared_server) as client:
            await say(client, max_output_tokens=2)
            assert (await receive(client, *TERMINAL))[-1]["type"] == "response.incomplete"


async def busy(client: ClientConnection) -> str:
    """Have lane `a` answer for a while; gives the response's id."""
    await say(client, max_output_tokens=450, stream_id="a")
    return str((await receive(client, "response.in_progress"))[0]["response"]["id"])


JUNK = '"tools":[{"type":"function","name":"f","parameters":{"x":[' + "{}," * 300_000 + "{}]}}]"


async def test_requests_that_wait_for_their_lane_are_bounded_in_bytes_and_kept_as_they_came(
    shared_server: Gateway,
) -> None:
    async with wire(shared_server, max_size=None) as client:
        running = await busy(client)
        before = shared_server.process.memory_info().rss
        with shared_server.suspended():
            for _ in range(8):
                await client.send('{"type":"response.create","stream_id":"a","input":"x",' + JUNK + "}")
            for _ in range(4):  # four of 0.9 MiB may wait
                [*_, error] = await receive(client, "error")
                assert (error["error"]["code"], error["stream_id"]) == ("queue_full", "a")
        assert shared_server.process.memory_info().rss - before < 32 << 20
        await client.send(f'{{"type":"response.cancel","response_id":"{running}"}}')
        await receive(client, "response.incomplete")
        for _ in range(4):
            [error] = await receive(client, *TERMINAL)
            assert (error["error"]["param"], error["stream_id"]) == (None, "a")
        await say(client, max_output_tokens=2, stream_id="a")
        assert (await receive(client, *TERMINAL))[-1]["type"] == "response.incomplete"


async def test_a_waiting_request_is_judged_when_its_turn_comes_and_what_is_no_json_at_once(
    shared_server: Gateway,
) -> None:
    async with wire(shared_server) as client:
        running = await busy(client)
        for wrong in ('{"type":"response.create","stream_id":"a","temperature":7}', "{", '{"stream_id":"a b"}', "[]"):
            await client.send(wrong)
        codes = []
        for _ in range(3):
            [*_, error] = await receive(client, "error")
            codes.append(error["error"]["code"])
        assert codes == ["invalid_json", "invalid_request", "invalid_request"]
        await client.send(f'{{"type":"response.cancel","response_id":"{running}"}}')
        await receive(client, "response.incomplete")
        [error] = await receive(client, *TERMINAL)
        assert (error["error"]["param"], error["stream_id"]) == ("temperature", "a")


async def test_large_messages_of_many_lanes_are_all_answered(shared_server: Gateway) -> None:
    async with wire(shared_server, max_size=None) as client:
        for lane in range(10):
            await client.send(f'{{"type":"response.create","stream_id":"{lane}","input":"{"x" * 100_000}"}}')
        errors = [(await receive(client, *TERMINAL))[-1] for _ in range(10)]
        assert {error["error"]["code"] for error in errors} == {"context_length_exceeded"}
        assert sorted(error["stream_id"] for error in errors) == [f"{lane}" for lane in range(10)]
