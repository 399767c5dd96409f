"""What every store does, each on the real thing: a file, a redis-server, shared memory."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.address import check_url, shown
from cache.cache import Cache
from cache.errors import StoreDeniedError, StoreError
from cache.keys import KeyRing
from cache.memory import PREFIX, MemoryStore
from cache.redis import RedisStore
from cache.sqlite import SqliteStore
from cache.store import Store, open_store
from tests import ROOT
from tests.support.redis_server import RedisServer, make_certificates

IDS = [bytes([n]) * 32 for n in range(12)]
DAY = 86_400.0


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for the tests of this file that do not break it."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["sqlite", "memory", "redis", "unix"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Each backend, empty."""
    url = {"sqlite": f"sqlite://{tmp_path}/a/blocks.db", "memory": "memory://"}.get(request.param)
    if url is None:
        server: RedisServer = request.getfixturevalue("redis_server")
        url = server.url if request.param == "redis" else server.unix
    opened = open_store(url, ttl=DAY, max_bytes=64 << 20)
    if isinstance(opened, RedisStore):
        opened._client.flushall()
    yield opened
    opened.close()


def test_what_was_put_is_there_and_what_was_not_is_none(store: Store) -> None:
    store.put_many([(IDS[0], b"one"), (IDS[1], b"")])
    assert store.get_many(IDS[:3]) == [b"one", b"", None]
    assert store.has_many(IDS[:3]) == [True, True, False]
    assert store.get_many([IDS[2], IDS[0]]) == [None, b"one"]


def test_an_id_holds_what_was_put_last(store: Store) -> None:
    store.put_many([(IDS[0], b"one")])
    store.put_many([(IDS[0], b"two")])
    assert store.get_many([IDS[0]]) == [b"two"]


def test_only_the_given_ids_are_deleted(store: Store) -> None:
    store.put_many([(id_, id_) for id_ in IDS[:3]])
    store.delete([IDS[1], IDS[7]])
    assert store.has_many(IDS[:3]) == [True, False, True]


def test_nothing_can_be_asked_put_renewed_and_deleted(store: Store) -> None:
    assert (store.get_many([]), store.has_many([])) == ([], [])
    store.put_many([])
    store.delete([])
    store.put_many([], [IDS[0]])
    store.sweep()
    store.ping()


def test_a_second_process_sees_what_the_first_has_put(store: Store) -> None:
    store.put_many([(IDS[0], b"one")])
    code = (
        "import sys; from cache.store import open_store\n"
        "store = open_store(sys.argv[1], ttl=86400, max_bytes=1 << 26)\n"
        "print(store.get_many([bytes(32)]))\n"
        "store.put_many([(b'x' * 32, b'two')]); store.close()"
    )
    subprocess.run([sys.executable, "-c", code, store.url], check=True, capture_output=True, cwd=ROOT)
    assert store.get_many([IDS[0], b"x" * 32]) == [b"one", b"two"]


def test_blocks_of_megabytes_are_read_back_unchanged(store: Store) -> None:
    pairs = [(id_, os.urandom(1_570_000)) for id_ in IDS[:8]]
    store.put_many(pairs)
    assert store.get_many(IDS[:8]) == [value for _, value in pairs]


def test_the_mark_is_what_was_written_last(store: Store) -> None:
    assert store.read_mark() is None
    store.write_mark("one")
    store.write_mark("two")
    assert store.read_mark() == "two"


def test_many_threads_use_one_store_at_once(store: Store) -> None:
    wrong: list[bytes | None] = []

    def work(n: int) -> None:
        for _ in range(20):
            store.put_many([(IDS[n], IDS[n])], [IDS[n]])
            wrong.extend(value for value in store.get_many([IDS[n]]) if value != IDS[n])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_memory_is_freed_with_its_owner_and_a_killed_owners_is_removed(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal; from pathlib import Path; from cache.memory import MemoryStore\n"
        "MemoryStore(ttl=1e5, max_bytes=1 << 26, parent=Path(sys.argv[1])).put_many([(bytes(32), b'x')])\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, cwd=ROOT)
    assert [path.name.startswith(PREFIX) for path in tmp_path.iterdir()] == [True]
    one = MemoryStore(ttl=DAY, max_bytes=1 << 26, parent=tmp_path)
    one.put_many([(IDS[0], b"x")])
    [folder] = tmp_path.iterdir()
    assert (folder.stat().st_mode & 0o777, (folder / "blocks.db").exists()) == (0o700, True)
    two = MemoryStore(ttl=DAY, max_bytes=1 << 26, parent=tmp_path)
    assert one.get_many([IDS[0]]) == [b"x"]
    one.close()
    two.close()
    assert list(tmp_path.iterdir()) == []


def test_redis_requires_tls_and_a_password_where_configured(tmp_path: Path) -> None:
    options = [*make_certificates(tmp_path), "--tls-auth-clients", "no", "--requirepass", "s3cret"]
    server = RedisServer(tmp_path)
    server._options = (*options, "--port", "0", "--tls-port", str(server.port))
    with server:
        url = f"rediss://:s3cret@127.0.0.1:{server.port}/0?ssl_ca_certs={tmp_path}/cert.pem"
        store = RedisStore(url, ttl=DAY)
        store.put_many([(IDS[0], b"one")])
        assert store.get_many([IDS[0]]) == [b"one"]
        store.close()
        bare, missing = url.partition("?")[0], tmp_path / "missing.pem"
        (tmp_path / "empty.pem").touch()
        causes = {
            bare: "is not trusted: self-signed certificate; .* ssl_ca_certs",
            url.replace("s3cret", "other"): "refuses the user or the password",
            bare.replace("rediss", "redis"): "speaks TLS; write rediss://",
            f"{bare}?ssl_ca_certs={missing}": f"ssl_ca_certs: there is no file {missing}",
            f"{bare}?ssl_ca_certs={tmp_path}/empty.pem": "ssl_ca_certs: .*empty.pem holds no certificate in PEM",
            f"{bare}?ssl_ca_certs={tmp_path}": "ssl_ca_certs: .* is a folder",
        }
        for wrong, cause in causes.items():
            assert re.search(cause, failure(wrong)), failure(wrong)


def test_the_rights_of_the_docs_are_all_that_a_redis_user_needs(tmp_path: Path, redis_server: RedisServer) -> None:
    docs = ROOT / "docs" / "cache.md"
    found = re.search(r"^ACL SETUSER samovar (.*)$", docs.read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    redis_server.command(
        "ACL", "SETUSER", "samovar", *found[1].replace("PASSWORD", "pot").replace(" +info", "").split()
    )
    url = f"redis://samovar:pot@127.0.0.1:{redis_server.port}/1"
    Cache(url, KeyRing.load(tmp_path / "key"), ttl=DAY, max_bytes=1 << 26).close()
    store = RedisStore(url, ttl=DAY)
    store.put_many([(IDS[0], b"one")], [IDS[0]])
    assert (store.get_many(IDS[:2]), store.has_many(IDS[:2])) == ([b"one", None], [True, False])
    store.delete(IDS[:1])
    assert (store.write_table("t", {b"a": b"1"}, drop=[b"b"]), store.revision("t"), store.read_table("t")) == (
        1,
        1,
        {b"a": b"1"},
    )
    store.ping()
    with pytest.raises(StoreDeniedError, match="'info'"):
        store.about("memory")
    store.close()


def test_tls_to_a_port_without_tls_is_reported(redis_server: RedisServer) -> None:
    assert "does not speak TLS; write redis://" in failure(redis_server.url.replace("redis://", "rediss://"))


def failure(url: str) -> str:
    """Return the error of a Redis that cannot be used, after checking that it contains no password."""
    store = RedisStore(url, ttl=DAY)
    with pytest.raises(StoreError) as caught:
        store.get_many([IDS[0]])
    store.close()
    assert "s3cret" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "must be sqlite"),
        ("blocks.db", "must be sqlite"),
        ("http://x", "must be sqlite"),
        ("memory:", "must be sqlite"),
        ("sqlite://blocks.db", "must have three slashes"),
        ("sqlite:///", "must have three slashes"),
        ("unix://", "must have a path"),
        ("redis:///0", "must have a host"),
        ("rediss://:secret@/0", "must have a host"),
        ("redis+sentinel://:secret@a,b", "must have the name of the master"),
        ("redis+sentinel://a,,b/name", "must have a host"),
        ("redis://host/name", "must have the number of a database"),
        ("redis://host:99999", "must have a host, and a number as port"),
        ("unix://run/redis.sock", "must have a path"),
        ("sqlite:///b.db?mode=ro", "takes no options"),
        ("sqlite:///b#.db", "must not contain #"),
        ("rediss://host?ssl_ca_cert=x", r"has an unknown option ssl_ca_cert; did you mean ssl_ca_certs\?"),
        ("redis://host?ssl_ca_certs=x", "ssl_ca_certs requires rediss://, not redis://"),
        ("redis://host?socket_timeout=secret", "option socket_timeout has an invalid value"),
        ("redis://host?password=top&secret=1", "has an unknown option; .* write & as %26"),
    ],
)
def test_a_url_that_names_no_store_is_refused_without_showing_it(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        check_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("rediss://user:pass@host:6379/1?ssl_password=x", "rediss://host:6379/1"),
        ("unix:///run/redis.sock?password=x", "unix:///run/redis.sock"),
        ("sqlite:///var/blocks.db", "sqlite:///var/blocks.db"),
        ("memory://", "memory://"),
        ("redis://host", "redis://host:6379/0"),
        ("redis://:p@ss@[::1]", "redis://[::1]:6379/0"),
        ("redis://:Sesam%23t%2Fu%3F@127.0.0.1:6380/3", "redis://127.0.0.1:6380/3"),
        (
            "redis+sentinel://u:pass@a,b:26380/mymaster/2?sentinel_password=x",
            "redis+sentinel://a:26379,b:26380/mymaster/2",
        ),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, seen: str) -> None:
    assert shown(check_url(url)) == seen


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix", "redis+sentinel"])
@pytest.mark.parametrize(
    "password", ["Se#sam", "Se/sam", "Se?sam", "12#Sesam", "12/Sesam", "12?Sesam", "Se@sa/m", "#", "/?"]
)
def test_a_password_that_is_not_percent_encoded_is_refused_and_hidden(scheme: str, password: str) -> None:
    where = {"unix": "/run/redis.sock", "redis+sentinel": "h:1,h:2/name/0"}.get(scheme, "127.0.0.1:6399/0")
    with pytest.raises(ValueError, match="percent-encode the password") as caught:
        check_url(f"{scheme}://default:{password}@{where}")
    assert [part for part in ("Se", "sam", "12") if part in str(caught.value)] == []


@pytest.mark.parametrize(
    "parts", [[b"*2147483648\r\n"], [b"*21474", b"83648\r\n"], [b"*1\r\n*2147", b"483648\r\n"], [b"~99999999\r\n"]]
)
def test_a_server_that_announces_billions_of_elements_is_no_redis(parts: list[bytes]) -> None:
    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.recv(1 << 16)
            for part in parts:
                connection.sendall(part)
                time.sleep(0.02)  # so that each part arrives in a separate read
            connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=[listener])
        thread.start()
        store = RedisStore(f"redis://127.0.0.1:{listener.getsockname()[1]}", ttl=DAY)
        with pytest.raises(StoreError, match="the server is not a Redis: InvalidResponse"):
            store.get_many(IDS)
        store.close()
        thread.join()


def test_a_path_may_hold_any_letter(tmp_path: Path) -> None:
    store = open_store(f"sqlite://{tmp_path}/茶%20x/blocks.db", ttl=DAY, max_bytes=1 << 26)
    store.ping()
    store.close()
    assert (tmp_path / "茶 x" / "blocks.db").exists()
    assert isinstance(store, SqliteStore)
