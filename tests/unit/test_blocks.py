"""KV blocks: their names, their sealing, and the key under which both are made."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import KeyMismatchError, KeyRing, StoreError
from cache.blocks import BLOCK, Block, Chain, root
from cache.sealing import OVERHEAD, Sealer

KEY = bytes(range(32))
ROOT = root({"model": "m", "kv": "f16", "unified": True})
TOKENS = list(range(1000))


def chain(tokens: list[int], scope: str = "alice", *, public: int = 0, key: bytes = KEY, root: bytes = ROOT) -> Chain:
    """The chain of `tokens`."""
    made = Chain(key, root, scope, public=public)
    made.extend(tokens)
    return made


def ids(blocks: list[Block]) -> list[bytes]:
    """Their ids alone."""
    return [block.id for block in blocks]


@given(st.lists(st.integers(0, 200), max_size=8), st.integers(0, 700))
def test_blocks_cover_a_sequence_without_gap_however_it_grew(sizes: list[int], public: int) -> None:
    tokens = TOKENS[: min(sum(sizes), len(TOKENS))]
    grown, filled, at = Chain(KEY, ROOT, "alice", public=public), [], 0
    for size in sizes:
        filled += grown.extend(tokens[at : at + size])
        at += size
    blocks = grown.blocks
    assert (filled, blocks) == (grown.full, chain(tokens, public=public).blocks)
    assert [block.start for block in blocks] == [0, *(block.end for block in blocks[:-1])][: len(blocks)]
    assert len(grown) == len(tokens) == (blocks[-1].end if blocks else 0)
    assert all(0 < block.end - block.start <= BLOCK for block in blocks)
    assert all(block.shared is (block.end <= public) for block in blocks)
    assert grown.extend(range(grown.due - len(grown) - 1)) == []
    assert len(grown.extend([7])) == 1


@given(st.integers(0, 127), st.integers(0, 127), st.integers(0, 300))
def test_the_tail_of_a_shorter_turn_is_among_the_candidates_longest_first(old: int, new: int, public: int) -> None:
    before = chain(TOKENS[: 256 + old], public=public)
    after = chain(TOKENS[: 256 + old + new], public=public)
    depth = len(before.full)
    candidates = after.tails(depth)
    assert before.tail is None or before.tail in [*candidates, *after.full]
    lengths = [block.end - block.start for block in candidates]
    assert lengths == sorted(lengths, reverse=True)
    assert len(lengths) < BLOCK


def test_an_id_depends_on_all_that_came_before_on_the_scope_the_root_and_the_key() -> None:
    mine = chain(TOKENS[:300])
    changed = chain([7, *TOKENS[1:300]])
    others = [
        changed,
        chain(TOKENS[:300], "bob"),
        chain(TOKENS[:300], root=root({"model": "n", "kv": "f16", "unified": True})),
        chain(TOKENS[:300], key=bytes(32)),
    ]
    everything = [id_ for one in [mine, *others] for id_ in ids(one.blocks)]
    assert len(everything) == len(set(everything)) == 15
    assert ids(chain([*TOKENS[:200], 7]).blocks)[0] == ids(mine.blocks)[0]


def test_a_root_does_not_depend_on_the_order_of_its_fields() -> None:
    assert root({"a": 1, "b": True}) == root({"b": True, "a": 1}) != root({"a": 1, "b": False})


def test_users_share_the_operators_instructions_whole_and_nothing_after_them() -> None:
    one, two = chain(TOKENS[:700], "alice", public=500), chain(TOKENS[:700], "bob", public=500)
    shared = [block for block in one.blocks if block.shared]
    assert (len(shared), shared[-1].end) == (4, 500)
    assert ids(one.blocks)[:4] == ids(two.blocks)[:4]
    assert not set(ids(one.blocks)[4:]) & set(ids(two.blocks))
    assert chain(TOKENS[:500], "bob", public=500).blocks == shared


def test_public_is_no_tenants_name() -> None:
    public = chain(TOKENS[:128], public=128).blocks[0].id
    assert public not in [chain(TOKENS[:128], scope).blocks[0].id for scope in ("", "public", "\0" * 32)]


def test_a_sealed_value_opens_only_under_its_own_name() -> None:
    sealer = Sealer(KeyRing.new().derive("blocks"))
    sealed = sealer.seal(b"state", b"one")
    assert sealer.open(sealed, b"one") == b"state"
    assert sealer.open(sealed, b"two") is None
    assert sealer.seal(b"state", b"one") != sealed
    assert b"state" not in sealed
    assert len(sealed) == len(b"state") + OVERHEAD


def test_no_byte_of_a_sealed_block_can_change_and_none_can_be_missing() -> None:
    sealer = Sealer([KEY])
    sealed = sealer.seal(bytes(range(256)), b"name")
    for at in range(len(sealed)):
        for bit in (1, 0x80):
            flipped = bytearray(sealed)
            flipped[at] ^= bit
            assert sealer.open(bytes(flipped), b"name") is None, at
        assert sealer.open(sealed[:at], b"name") is None
        assert sealer.open(sealed[at + 1 :], b"name") is None
    assert sealer.open(sealed + b"\0", b"name") is None


def test_after_a_rotation_the_new_key_seals_and_the_old_one_still_opens() -> None:
    old = KeyRing.new()
    both = KeyRing.parse(KeyRing.new().text + old.text)
    before, after = Sealer(old.derive("turns")), Sealer(both.derive("turns"))
    assert after.open(before.seal(b"said", b"a"), b"a") == b"said"
    assert before.open(after.seal(b"said", b"a"), b"a") is None


def test_keys_of_two_purposes_and_two_rings_differ() -> None:
    ring = KeyRing.new()
    assert len({*ring.derive("a"), *ring.derive("b"), *KeyRing.new().derive("a")}) == 3


def test_a_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "cache.key"
    with ThreadPoolExecutor(8) as pool:
        rings = list(pool.map(lambda _: KeyRing.load(path), range(16)))
    assert len({ring.text for ring in rings}) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [other.name for other in path.parent.iterdir()] == ["cache.key"]


def test_a_key_can_be_given_as_it_is() -> None:
    ring = KeyRing.new()
    assert KeyRing.load(ring.text.strip()).text == ring.text


@pytest.mark.parametrize("text", ["", "smk_short", "secret " * 9, "smk_" + "é" * 43, "smk_" + "A" * 44, "A" * 43])
def test_a_file_without_keys_is_rejected_and_its_contents_are_not_quoted(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text, encoding="utf-8")
    with pytest.raises(StoreError, match=r"cache_key: .*key can't be used: a key must") as caught:
        KeyRing.load(tmp_path / "key")
    assert not text or text not in str(caught.value)


def test_a_folder_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cache_key: .* can't be used: Is a directory"):
        KeyRing.load(tmp_path)


def test_a_ring_shows_no_secret() -> None:
    ring = KeyRing.new()
    secret = ring.text.strip().removeprefix("smk_")
    assert ring.fingerprints[0] in repr(ring)
    assert secret not in repr(ring) + str(ring)


def test_data_of_another_key_is_refused_in_words_and_that_of_an_older_one_is_taken_over() -> None:
    old, new = KeyRing.new(), KeyRing.new()
    both = KeyRing.parse(f"{new.text} {old.text}")
    assert [old.check(None, "x"), old.check(old.fingerprints[0], "x"), both.check(old.fingerprints[0], "x")] == [
        True,
        False,
        True,
    ]
    with pytest.raises(KeyMismatchError, match=f"x was sealed under the key {old.fingerprints[0]}"):
        new.check(old.fingerprints[0], "x")
