"""Ten thousand idle connections: the cost of each, and the latency of the gateway meanwhile.

python -m benchmarks.idle [--connections 10000] [--seconds 100]: starts a gateway with the embedded model and the limits
per address raised; prints memory per connection, CPU time for their heartbeats, and the latency of an error response
meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import time
from typing import Final, cast

import uvloop
from websockets.asyncio.client import connect

from benchmarks.command import leave_on_sigterm
from benchmarks.figures import Figure, publish
from benchmarks.machine import embedded, machine
from benchmarks.servers import Server, samovar
from gateway.config.other_load import OtherLoad

CONNECTIONS: Final = 10_000
HEARTBEAT: Final = 50.0
"""Seconds between two pings from the gateway."""
BATCH: Final = 100
ECHOES: Final = 300
UPGRADE: Final = (
    b"GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
PING, PONG, MASKED = 0x89, 0x8A, 0x80


class Idler(asyncio.Protocol):
    """A client that only answers pings: ten thousand library clients would cost more than what is measured."""

    def __init__(self) -> None:
        """Create a client that is not connected yet."""
        self.upgraded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pings = 0
        self._transport: asyncio.Transport | None = None
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the upgrade request."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transport is not declared as one
        self._transport.write(UPGRADE)

    def data_received(self, data: bytes) -> None:
        """Read the response to the upgrade, then pings, which arrive whole on loopback."""
        if not self.upgraded.done():
            self._head += data
            if b"\r\n\r\n" in self._head:
                if b" 101 " in self._head.partition(b"\r\n")[0]:
                    self.upgraded.set_result(None)
                else:
                    self.upgraded.set_exception(SystemExit(self._head.decode(errors="replace")))
        elif data[0] == PING and self._transport is not None:
            self.pings += 1
            payload = data[2 : 2 + data[1]]
            self._transport.write(bytes([PONG, MASKED | len(payload), 0, 0, 0, 0]) + payload)  # masked with zeros

    def connection_lost(self, exc: Exception | None) -> None:
        """Record that the gateway closed the connection."""
        if not self.upgraded.done():
            self.upgraded.set_exception(exc or SystemExit("the gateway closed the connection"))
        self._transport = None

    @property
    def is_open(self) -> bool:
        """Whether the connection is open."""
        return self._transport is not None

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


async def crowd(server: Server, count: int) -> list[Idler]:
    """Open `count` connections."""
    loop = asyncio.get_running_loop()
    idlers: list[Idler] = []
    for _ in range(0, count, BATCH):
        made = await asyncio.gather(
            *(loop.create_connection(Idler, "127.0.0.1", server.port) for _ in range(min(BATCH, count - len(idlers))))
        )
        idlers += [idler for _, idler in made]
        await asyncio.gather(*(idler.upgraded for _, idler in made))
    return idlers


async def echo(server: Server) -> list[float]:
    """Return the milliseconds from a bad frame to its error, ECHOES times."""
    found = []
    async with connect(server.address, compression=None) as socket:
        for _ in range(ECHOES):
            began = time.perf_counter()
            await socket.send("{")
            await socket.recv()
            found.append(1000 * (time.perf_counter() - began))
            await asyncio.sleep(0.005)
    return found


def figure(name: str, values: list[float], unit: str, goal: float | None = None) -> Figure:
    """Create a figure of this benchmark."""
    return Figure(benchmark="idle", name=name, values=values, unit=unit, goal=goal)


async def measure(server: Server, count: int, seconds: float) -> None:
    """Measure and print."""
    alone = await echo(server)
    await crowd_and_leave(server, 200)  # one-time loads by the first connections do not count
    rest = server.process.memory_info().rss
    began = time.monotonic()
    idlers = await crowd(server, count)
    print(f"  opened in {time.monotonic() - began:.1f} s")
    await asyncio.sleep(2)
    grown = server.process.memory_info().rss - rest
    print(f"  gateway at rest {rest / 1e6:.0f} MB")
    among = await echo(server)
    publish(
        [
            figure(f"{count:,} idle connections: each", [grown / count / 1024], "KiB", 32.0),
            figure("echo of an error alone", alone, "ms"),
            figure(f"echo of an error among {count:,} idle connections", among, "ms", 2.0),
        ]
    )
    others, began, used = OtherLoad(server.process), time.monotonic(), sum(server.process.cpu_times()[:2])
    await asyncio.sleep(seconds)
    used, idle = sum(server.process.cpu_times()[:2]) - used, time.monotonic() - began
    pings = statistics.mean(idler.pings for idler in idlers)
    publish([figure(f"{count:,} idle connections: share of a core", [100 * used / idle], "%", 3.0)])
    print(f"  over {idle:.0f} s, {pings:.1f} heartbeats each so far")
    print(
        f"  still open: {sum(idler.is_open for idler in idlers):,}; "
        f"other processes kept {others.cores():.2f} cores busy"
    )
    for idler in idlers:
        idler.close()


async def crowd_and_leave(server: Server, count: int) -> None:
    """Open and close `count` connections to warm the gateway up."""
    for idler in await crowd(server, count):
        idler.close()
    await asyncio.sleep(1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--seconds", type=float, default=2 * HEARTBEAT, help="how long the connections idle")
    options = parser.parse_args()
    count = options.connections
    leave_on_sigterm()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < count + 100:
        raise SystemExit(
            f"{count} connections need {count + 100} open files, but the limit is {hard}: raise it with `ulimit -n`"
        )
    lifted = 2 * count + 1000
    with samovar(embedded(), connections_per_address=lifted, messages_per_minute=1_000_000, preload=False) as server:
        print(f"{count:,} idle connections, a heartbeat every {HEARTBEAT:g} s, {machine()}, process {os.getpid()}")
        uvloop.run(measure(server, count, options.seconds))


if __name__ == "__main__":
    main()
