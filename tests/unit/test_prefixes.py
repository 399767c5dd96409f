"""The prefix cache: hits of returning sessions, isolation of tenants, and blocks that were tampered with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache import CacheConfig, KeyRing
from cache.blocks import BLOCK, Block, Chain
from cache.circuit_breaker import CircuitBreaker, Operation
from cache.prefixes import PrefixCache, Stored
from cache.redis import RedisStore
from cache.sqlite import SqliteStore
from tests.support.redis_server import RedisServer

TOKENS = list(range(1000, 3000))
MODEL = {"model": "m", "type_k": "f16"}
KEYS = KeyRing.new()


@pytest.fixture
def seen() -> list[Operation]:
    """The operations reported to the metrics."""
    return []


@pytest.fixture
def raw(tmp_path: Path) -> SqliteStore:
    """The store under all."""
    return SqliteStore(tmp_path / "blocks.db", ttl=1000, max_bytes=1 << 26)


@pytest.fixture
def open_cache(raw: SqliteStore, seen: list[Operation]) -> Iterator[Callable[..., PrefixCache]]:
    """Opens the prefix cache of an engine; all of them share one store."""
    guarded = CircuitBreaker(raw, observe=seen.append)

    def make(keys: KeyRing = KEYS, what: dict[str, str] = MODEL) -> PrefixCache:
        return PrefixCache(guarded, keys, what)

    yield make
    guarded.close()


@pytest.fixture
def cache(open_cache: Callable[..., PrefixCache]) -> PrefixCache:
    """One of them."""
    return open_cache()


def finish(cache: PrefixCache, tokens: list[int], scope: str = "alice", public: int = 0) -> Chain:
    """Serialize and store the missing blocks, as an engine does after a turn."""
    chain = cache.chain(tokens, scope, public=public)
    blocks = missing(cache, chain)
    assert cache.store(chain, [Stored(block, state(tokens, block.start, block.end)) for block in blocks])
    return chain


def missing(cache: PrefixCache, chain: Chain) -> list[Block]:
    """Return the blocks of `chain` that the store lacks."""
    present = cache._store.has_many([block.id for block in chain.blocks])
    return [block for block, has in zip(chain.blocks, present, strict=True) if not has]


def state(tokens: list[int], start: int, end: int) -> bytes:
    """Stands for the KV of these tokens."""
    return repr(tokens[start:end]).encode()


def found(cache: PrefixCache, tokens: list[int], scope: str = "alice", *, public: int = 0, start: int = 0) -> int:
    """Return how many leading tokens need not be computed, after checking the states of the found blocks."""
    blocks = cache.fetch(cache.chain(tokens, scope, public=public), start=start)
    at = blocks[0].block.start if blocks else 0
    for block, bytes_ in blocks:
        assert (block.start, bytes_) == (at, state(tokens, block.start, block.end))
        at = block.end
    return at


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 700), st.integers(0, 300), st.integers(0, 400))
def test_a_returning_session_finds_every_token_of_its_history(
    open_cache: Callable[..., PrefixCache], history: int, new: int, public: int
) -> None:
    cache = open_cache(what={"run": f"{history} {new} {public}"})
    finish(cache, TOKENS[:history], public=public)
    assert found(cache, TOKENS[: history + new], public=public) == history


def test_only_what_leads_on_from_the_resident_tokens_is_fetched(cache: PrefixCache, seen: list[Operation]) -> None:
    finish(cache, TOKENS[:500])
    assert [found(cache, TOKENS[:600], start=n) for n in (0, 127, 128, 384, 499)] == [500] * 5
    blocks = cache.fetch(cache.chain(TOKENS[:600], "alice"), start=300)
    assert [(block.start, block.end) for block, _ in blocks] == [(256, 384), (384, 500)]
    seen.clear()
    assert cache.fetch(cache.chain(TOKENS[:600], "alice"), start=500) == []
    assert {one.operation for one in seen} == {"has"}


def test_a_changed_history_is_taken_up_to_its_change(cache: PrefixCache) -> None:
    finish(cache, TOKENS[:500])
    changed = [*TOKENS[:300], 7, *TOKENS[301:500]]
    assert found(cache, changed) == 256


def test_branches_share_their_trunk_and_each_finds_its_own_end(cache: PrefixCache, raw: SqliteStore) -> None:
    one, two = [*TOKENS[:300], *range(200)], [*TOKENS[:300], *range(500, 700)]
    finish(cache, one)
    before = raw.size()
    chain = cache.chain(two, "alice")
    assert len(missing(cache, chain)) == len(chain.blocks) - 2
    finish(cache, two)
    assert (found(cache, one), found(cache, two)) == (500, 500)
    assert raw.size() >= before


def test_two_hundred_sessions_store_the_operators_instructions_once(cache: PrefixCache) -> None:
    instructions = TOKENS[:500]
    absent = []
    for n in range(200):
        chain = cache.chain([*instructions, n, n, n], f"tenant {n}", public=500)
        blocks = missing(cache, chain)
        absent.append(sum(block.end - block.start for block in blocks))
        cache.store(chain, [Stored(block, b"state") for block in blocks])
    assert absent == [503, *[3] * 199]


def test_tenants_do_not_share_blocks_of_identical_text(cache: PrefixCache) -> None:
    finish(cache, TOKENS[:600], "alice", public=300)
    assert found(cache, TOKENS[:600], "alice", public=300) == 600
    assert found(cache, TOKENS[:600], "bob", public=300) == 300
    assert found(cache, TOKENS[:600], "bob") == 0


def test_another_model_build_or_key_finds_nothing(open_cache: Callable[..., PrefixCache]) -> None:
    finish(open_cache(), TOKENS[:600])
    assert found(open_cache(), TOKENS[:600]) == 600
    assert found(open_cache(what={"model": "m", "type_k": "q8_0"}), TOKENS[:600]) == 0
    rotated = KeyRing.parse(f"{KeyRing.new().text} {KEYS.text}")
    assert found(open_cache(keys=rotated), TOKENS[:600]) == 0


def test_a_block_in_anothers_place_is_a_miss_is_counted_and_is_deleted(
    cache: PrefixCache, raw: SqliteStore, seen: list[Operation]
) -> None:
    alice, bob = (finish(cache, TOKENS[:300], scope) for scope in ("alice", "bob"))
    mine, others = alice.blocks[1].id, bob.blocks[1].id
    [value] = raw.get_many([others])
    assert value is not None
    raw.put_many([(mine, value)])
    assert found(cache, TOKENS[:300], "alice") == 128
    assert ("open", "corrupt") in [(one.operation, one.outcome) for one in seen]
    assert raw.has_many([mine, others]) == [False, True]


def test_no_byte_of_a_stored_block_can_change(cache: PrefixCache, raw: SqliteStore, seen: list[Operation]) -> None:
    chain = finish(cache, TOKENS[:20])
    [block] = chain.blocks
    [value] = raw.get_many([block.id])
    assert value is not None
    for at in range(len(value)):
        flipped = bytearray(value)
        flipped[at] ^= 0x10
        raw.put_many([(block.id, bytes(flipped))])
        assert found(cache, TOKENS[:20]) == 0
        assert raw.has_many([block.id]) == [False]
    assert sum(one.outcome == "corrupt" for one in seen) == len(value)


def test_what_a_turn_has_used_outlives_what_it_has_not(cache: PrefixCache, raw: SqliteStore) -> None:
    alice, bob = cache.chain(TOKENS[:300], "alice"), cache.chain(TOKENS[:300], "bob")
    for chain in (alice, bob):
        cache.store(chain, [Stored(block, bytes(1 << 20)) for block in chain.blocks])
    cache.store(alice, [])
    raw._max_bytes = raw.size() - 1
    raw.sweep()
    assert [len(cache.fetch(chain)) for chain in (alice, bob)] == [3, 2]


def test_forgetting_a_turn_leaves_what_came_before_it_and_what_is_everybodys(cache: PrefixCache) -> None:
    finish(cache, TOKENS[:400], public=200)
    last = finish(cache, TOKENS[:700], public=200)
    cache._store.delete(cache.deletable(last, start=400))
    assert found(cache, TOKENS[:700], public=200) == 400
    cache._store.delete(cache.deletable(last))
    assert found(cache, TOKENS[:700], public=200) == 200


def test_deleting_a_turn_deletes_the_tails_of_all_turns_before_it(cache: PrefixCache, raw: SqliteStore) -> None:
    chains = [finish(cache, TOKENS[:length]) for length in (40, 200, 333, 399)]
    cache._store.delete(cache.deletable(cache.chain(TOKENS[:400], "alice"), start=40))
    left = [block for chain in chains for block in chain.blocks if raw.has_many([block.id])[0]]
    assert [block.end for block in left] == [40]


def test_a_failed_store_counts_as_an_empty_store(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        cache = PrefixCache(CircuitBreaker(RedisStore(server.unix, ttl=100)), KEYS, MODEL)
        chain = finish(cache, TOKENS[:300])
        assert (found(cache, TOKENS[:300]), cache.up, cache.writable) == (300, True, True)
        server.stop()
        assert found(cache, TOKENS[:300]) == 0
        assert (cache.up, cache.writable) == (False, False)
        assert not cache.store(chain, [Stored(chain.blocks[0], b"state")])
        cache.close()


def test_a_running_answer_is_stored_as_its_blocks_fill(cache: PrefixCache) -> None:
    chain = cache.chain(TOKENS[:100], "alice")
    for at in range(100, 500, 10):
        for block in chain.extend(TOKENS[at : at + 10]):
            assert block.end - block.start == BLOCK
            cache.store(chain, [Stored(block, state(TOKENS, block.start, block.end))])
    assert found(cache, TOKENS[:500]) == 384


def test_an_engine_opens_the_cache_by_a_message_that_shows_no_secret(tmp_path: Path) -> None:
    config = CacheConfig(f"sqlite://{tmp_path}/blocks.db", 100.0, 1 << 26, KEYS.text)
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=CacheConfig)
    for opened in (config.open(MODEL), sent.open(MODEL)):
        finish(opened, TOKENS[:200])
        assert found(opened, TOKENS[:300]) == 200
        opened.close()
    assert KEYS.text.strip() not in repr(config)
    assert "secret" not in repr(CacheConfig("redis://:secret@host/0", 1.0, 1, KEYS.text))
