"""Two gateways on one Redis behind the balancers that `deploy/` configures, over TLS: one dies, its clients go on."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cache import KeyRing, Ledger
from gateway.auth.users import Users
from tests.support.balancers import BALANCERS, Balancer, free_ports
from tests.support.browsing import OpenPage, ask, ended, short_answers
from tests.support.redis_server import RedisServer
from tests.support.running import Conversation, Gateway, connect, said

CLIENTS = 8
KEYS = 24
"""Enough that not all are led to one gateway, whatever the keys are."""
ANSWER = {"logit_bias": {"65": 100}, "temperature": 0, "max_output_tokens": 5}
"""The tiny model says A."""
LONG: dict[str, Any] = {**ANSWER, "max_output_tokens": 400}


class House:
    """Two gateways with one Redis and one key, and what stands before them."""

    def __init__(self, folder: Path, model: Path, redis: RedisServer) -> None:
        """Nothing runs yet but the Redis. All keys are made at the first gateway, and are good at both."""
        secret = KeyRing.new()
        self.key = folder / "cache.key"
        self.key.write_text(secret.text)
        self.keys = asyncio.run(make_keys(folder / "a", redis, secret))
        self.ports = free_ports(4)
        shared = {"model": model, "context": 512, "cache": redis.url, "cache_key": self.key, "cores": 1}
        names = zip("ab", self.ports[:2], strict=True)
        self.gateways = [
            Gateway(folder / name, port=port, trusted_proxies="127.0.0.1", **shared) for name, port in names
        ]
        self.addresses = [f"127.0.0.1:{port}" for port in self.ports[:2]]

    def behind(self, kind: type[Balancer], folder: Path) -> Balancer:
        """A balancer before both, its files in `folder`; it does not run yet."""
        return kind(folder / "balancer", self.addresses, (self.ports[2], self.ports[3]))

    def requests(self) -> list[float]:
        """How many each gateway has had."""
        return [gateway.metric("samovar_requests_total") for gateway in self.gateways]


class Client:
    """One user's program: when its connection is lost it opens another one, and goes on where it was."""

    def __init__(self, key: str, balancer: Balancer) -> None:
        """Speak with `key`; nothing is said yet."""
        self.key = key
        self.connections = 0
        self.previous: Any = None
        self.answered = asyncio.Event()
        """Some of an answer has come."""
        self._balancer = balancer
        self._conversation: Conversation | None = None
        self._stack = AsyncExitStack()

    async def ask(self, text: str, **fields: Any) -> Any:
        """The response that continues the conversation."""
        last = self.previous.id if self.previous else None
        for _ in range(40):
            try:
                if self._conversation is None:
                    opened = connect(self._balancer.url, self.key, self._balancer.tls)
                    self._conversation = await self._stack.enter_async_context(opened)
                    self.connections += 1
                request = {"input": text, "previous_response_id": last, **ANSWER, **fields}
                await self._conversation.send({"type": "response.create", **request})
                events = await self._events(self._conversation)
            except (ConnectionClosed, InvalidStatus, AssertionError):
                await self.leave()
                await asyncio.sleep(0.1)
                continue
            if events[-1].type == "error" and events[-1].error.code == "engine_unavailable":
                await self.leave()  # the gateway is stopping
                await asyncio.sleep(0.1)
                continue
            assert events[-1].type == "response.incomplete", events[-1]  # five tokens, no more
            assert set(said(events)) == {"A"}
            self.previous = events[-1].response
            return self.previous
        raise AssertionError(f"{self.key} got no answer")

    async def _events(self, conversation: Conversation) -> list[Any]:
        events = []
        async for event in conversation.stream():
            events.append(event)
            if event.type == "response.output_text.delta":
                self.answered.set()
            elif event.type in ("response.incomplete", "response.failed", "error"):
                return events
        raise AssertionError("the connection ended")

    async def leave(self) -> None:
        """Close the connection."""
        self._conversation = None
        await self._stack.aclose()


@pytest.fixture
def house(tmp_path: Path, tiny_model: Path) -> Iterator[House]:
    """The gateways run, and may be ended."""
    with open_house(tmp_path, tiny_model) as house:
        yield house


@pytest.fixture(scope="module")
def lasting_house(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[House]:
    """One for all tests that leave both gateways running."""
    with open_house(tmp_path_factory.mktemp("house"), tiny_model) as house:
        yield house


@contextmanager
def open_house(folder: Path, model: Path) -> Iterator[House]:
    """Its Redis and gateways run."""
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(folder))
        house = House(folder, model, redis)
        for gateway in house.gateways:
            stack.enter_context(gateway)
        yield house


async def make_keys(folder: Path, redis: RedisServer, secret: KeyRing) -> list[str]:
    """As `samovar keys add` makes them at the gateway whose state lies in `folder`."""
    ledger = Ledger(redis.url, secret)
    users = Users(folder, ledger=ledger)
    keys = [await users.add(f"user-{number}") for number in range(KEYS)]
    users.close()
    ledger.close()
    return keys


async def until_stored(gateway: Gateway) -> None:
    """Wait until the KV blocks of all answers so far have left the gateway."""
    answers = gateway.metric("samovar_requests_total")
    for _ in range(500):
        if gateway.metric("samovar_store_operations_total", operation="put", outcome="ok") >= answers:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("blocks were not stored")


@pytest.mark.slow
@BALANCERS
async def test_when_a_gateway_is_killed_its_clients_go_on_with_the_other_and_nothing_is_encoded_twice(
    tmp_path: Path, house: House, kind: type[Balancer]
) -> None:
    balancer = house.behind(kind, tmp_path)
    clients: list[Client] = []
    with balancer.running():
        for key in house.keys:
            clients.append(Client(key, balancer))
            await clients[-1].ask("茶炊是什么?")
            shares = [gateway.metric("samovar_websocket_connections") for gateway in house.gateways]
            if len(clients) >= CLIENTS and min(shares) > 0:
                break
        assert sum(shares) == len(clients)
        assert min(shares) > 0, "all went to one gateway"
        for gateway in house.gateways:
            await until_stored(gateway)

        house.gateways[0].stop(signal.SIGKILL)
        for client in clients:
            before = client.previous.usage.total_tokens
            response = await client.ask("?")
            # All that the model has computed: the last token of an answer was drawn, and never was an input.
            assert response.usage.input_tokens_details.cached_tokens == before - 1
        assert sum(client.connections for client in clients) == len(clients) + shares[0]
        assert house.gateways[1].metric("samovar_prompt_tokens_total", source="store") > 0

        house.gateways[0].start()
        await until_stored(house.gateways[1])
        house.gateways[1].process.send_signal(signal.SIGTERM)  # and this one goes in good order
        for client in clients:
            before = client.previous.usage.total_tokens
            assert (await client.ask("!")).usage.input_tokens_details.cached_tokens == before - 1
            await client.leave()
        assert house.gateways[1].wait() == 0


@pytest.mark.slow
@BALANCERS
async def test_a_gateway_that_stops_ends_its_answers_while_newcomers_are_led_to_the_other(
    tmp_path: Path, lasting_house: House, kind: type[Balancer]
) -> None:
    house = lasting_house
    balancer = house.behind(kind, tmp_path)
    with balancer.running():
        client = Client(house.keys[0], balancer)
        await client.ask("Hello")
        home = max(house.gateways, key=lambda gateway: gateway.metric("samovar_websocket_connections"))
        client.answered.clear()
        long = asyncio.create_task(client.ask("More", max_output_tokens=400))
        await client.answered.wait()
        home.process.send_signal(signal.SIGTERM)
        newcomer = Client(house.keys[0], balancer)  # whose place is the one that stops
        await newcomer.ask("Hello")
        assert newcomer.connections == 1
        assert (await long).usage.output_tokens == 400
        assert client.connections == 1
        await client.leave()
        await newcomer.leave()
        assert home.wait() == 0
    home.start()


@pytest.mark.slow
@BALANCERS
async def test_a_disconnected_client_resumes_its_answer_through_the_balancer_at_the_gateway_where_it_runs(
    tmp_path: Path, lasting_house: House, kind: type[Balancer]
) -> None:
    house = lasting_house
    balancer = house.behind(kind, tmp_path)
    earlier = house.requests()
    with balancer.running():
        for key in house.keys:
            async with connect(balancer.url, key, balancer.tls) as conversation:
                await conversation.send({"type": "response.create", "input": "Hello", **LONG})
                before = [await anext(conversation.stream())]
                while not said(before):
                    before.append(await anext(conversation.stream()))
                conversation.connection._connection.transport.abort()  # no close frame
            place = {"response_id": before[0].response.id, "starting_after": before[-1].sequence_number}
            async with connect(balancer.url, key, balancer.tls) as conversation:
                await conversation.send({"type": "response.resume", **place})
                after = await conversation.events()
            assert said(before) + said(after) == "A" * LONG["max_output_tokens"]
            path = f"/v1/responses/{place['response_id']}?stream=true&starting_after={place['starting_after']}"
            again = await asyncio.to_thread(balancer.get, path, Authorization=f"Bearer {key}")
            assert again.text.count("event: response.output_text.delta") > 0
            counts = house.requests()
            if all(now > then for now, then in zip(counts, earlier, strict=True)):
                return
    raise AssertionError("all went to one gateway")


@pytest.mark.slow
@BALANCERS
async def test_all_connections_of_a_key_and_its_cancel_reach_one_gateway(
    tmp_path: Path, lasting_house: House, kind: type[Balancer]
) -> None:
    house = lasting_house
    balancer = house.behind(kind, tmp_path)
    with balancer.running():
        for key in house.keys[:2]:
            before = house.requests()
            async with AsyncExitStack() as stack:
                opened = [connect(balancer.url, key, balancer.tls) for _ in range(5)]
                sockets = [await stack.enter_async_context(one) for one in opened]
                for conversation in sockets:
                    await conversation.ask("Hello", **ANSWER)
                await sockets[-1].send({"type": "response.create", "input": "Hello", **LONG})
                running = (await anext(sockets[-1].stream())).response.id
                path = f"/v1/responses/{running}/cancel"
                cancelled = await asyncio.to_thread(balancer.post, path, {}, Authorization=f"Bearer {key}")
                assert cancelled.status_code == 200, cancelled.text
                assert (await sockets[-1].events())[-1].response.status == "cancelled"
            after = house.requests()
            assert sorted(now - then for now, then in zip(after, before, strict=True)) == [0, len(sockets) + 1]


@pytest.mark.slow
@BALANCERS
def test_the_balancer_adds_what_the_gateway_believes_of_it_alone(
    tmp_path: Path, lasting_house: House, kind: type[Balancer]
) -> None:
    house = lasting_house
    balancer = house.behind(kind, tmp_path)
    with balancer.running():
        key = {"Authorization": f"Bearer {house.keys[0]}"}
        moved = httpx.get(balancer.plain + "/v1/models", timeout=10)
        assert (moved.status_code, moved.headers["location"][:8]) == (308, "https://")
        for path in ("/metrics", "/%6Detrics"):
            assert balancer.get(path).status_code == 403
        page = balancer.get("/", **{"X-Forwarded-Host": "evil.example", "X-Forwarded-For": "10.9.8.7"})
        assert page.status_code == 200
        assert page.headers["strict-transport-security"] == "max-age=31536000"
        assert balancer.get("/", Host="evil.example").status_code in (403, 421)
        assert balancer.get("/v1/models", Origin="https://evil.example", **key).status_code == 403
        assert balancer.get("/v1/models", Origin=balancer.url, **key).status_code == 200
        body = {"model": "tiny", "input": "Hello", "stream": True, **ANSWER}
        answered = balancer.post("/v1/responses", body, **key)
        assert answered.text.count("event: response.output_text.delta") > 0
        *_, last, done = answered.text.rstrip().split("\n\n")
        assert last.startswith("event: response.incomplete\n")
        assert done == "data: [DONE]"
        large = balancer.post("/v1/responses", {"input": "x" * (3 << 20)}, **key)
        assert large.json()["error"]["code"] == "message_too_large"


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="module")
@BALANCERS
async def test_the_chat_page_works_through_the_balancer(
    tmp_path: Path, server: Gateway, open_page: OpenPage, kind: type[Balancer]
) -> None:
    tls, plain = free_ports(2)
    address = server.url.removeprefix("http://")
    balancer = kind(tmp_path / "balancer", [address, address], (tls, plain))
    with balancer.running():
        page = await open_page(short_answers, url=balancer.url, ignore_https_errors=True)
        await ended(await ask(page, "Say hello."))
