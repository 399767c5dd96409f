"""Findings of `samovar doctor` on storage: the key, the location of the cache, a Redis and its policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cache import Cache, KeyRing
from gateway.cli.doctor.finding import Finding, Mark
from gateway.cli.doctor.messages import TEXTS
from gateway.cli.doctor.storage import StorageChecks
from gateway.cli.language import Phrases
from gateway.config.settings import SettingsError, load
from tests.support.redis_server import RedisServer

KEYS = KeyRing.new()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server with Debian's defaults: without maxmemory."""
    with RedisServer(tmp_path) as server:
        yield server


def findings(folder: Path, **flags: object) -> list[Finding]:
    """Return the findings on storage."""
    settings = load({"state_dir": str(folder / "state"), **flags})
    return list(StorageChecks(settings, Phrases(TEXTS, chinese=False)).findings())


def worst(folder: Path, **flags: object) -> Finding:
    """Return the worst finding."""
    return max(findings(folder, **flags), key=lambda finding: list(Mark).index(finding.mark))


def test_before_the_first_start_storage_is_ok_and_nothing_is_created(tmp_path: Path) -> None:
    assert [(one.subject, one.mark) for one in findings(tmp_path)] == [("cache_key", Mark.OK), ("cache", Mark.OK)]
    assert not (tmp_path / "state").exists()


def test_the_key_is_shown_by_its_fingerprint(tmp_path: Path) -> None:
    [key, _] = findings(tmp_path, cache_key=KEYS.text.strip())
    assert (key.mark, KEYS.fingerprints[0] in key.text) == (Mark.OK, True)


def test_a_key_readable_by_others_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(KEYS.text)
    path.chmod(0o644)
    assert worst(tmp_path, cache_key=str(path)).fix == f"chmod 600 {path}"
    path.chmod(0o600)
    assert worst(tmp_path, cache_key=str(path)).mark is Mark.OK


@pytest.mark.parametrize("key", ["smk_wrong", __file__, "/dev"])
def test_an_invalid_key_is_a_failure(tmp_path: Path, key: str) -> None:
    finding = worst(tmp_path, cache_key=key)
    assert (finding.mark, finding.subject, "--cache-key" in finding.fix) == (Mark.FAIL, "cache_key", True)


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_cache_of_another_key_is_a_failure(tmp_path: Path, redis: RedisServer, kind: str) -> None:
    url = redis.url if kind == "redis" else f"sqlite://{tmp_path}/茶%20b.db"
    Cache(url, KeyRing.new(), ttl=100, max_bytes=1 << 26).close()
    finding = worst(tmp_path, cache=url, cache_key=KEYS.text.strip())
    assert (finding.mark, finding.subject) == (Mark.FAIL, "cache")
    assert "--cache-key" in finding.fix


def test_the_size_of_a_cache_file_is_shown(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/b.db"
    Cache(url, KEYS, ttl=100, max_bytes=1 << 26).close()
    [_, cache] = findings(tmp_path, cache=url, cache_key=KEYS.text.strip())
    assert (cache.mark, "of at most 2.0 GiB" in cache.text) == (Mark.OK, True)


def test_a_file_that_is_not_a_cache_is_a_warning_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("dear " * 1000)
    assert worst(tmp_path, cache=f"sqlite://{path}").mark is Mark.WARN
    assert [path.name, path.read_text()[:5]] == ["letter.txt", "dear "]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("cache", ["sqlite", "memory://"])
def test_a_cache_larger_than_the_free_space_is_a_warning(tmp_path: Path, cache: str) -> None:
    finding = worst(tmp_path, cache=cache, cache_max_bytes="1000 TiB")
    assert (finding.mark, "--cache-max-bytes" in finding.fix) == (Mark.WARN, True)
    assert worst(tmp_path, cache=cache, cache_max_bytes="64 MiB").mark is Mark.OK


def test_a_redis_without_maxmemory_is_a_warning(tmp_path: Path, redis: RedisServer) -> None:
    finding = worst(tmp_path, cache=redis.url)
    assert (finding.mark, "maxmemory 2gb" in finding.fix) == (Mark.WARN, True)


@pytest.mark.parametrize(
    ("policy", "mark"), [("volatile-ttl", Mark.OK), ("noeviction", Mark.WARN), ("allkeys-random", Mark.WARN)]
)
def test_the_policy_of_a_redis_is_checked(tmp_path: Path, policy: str, mark: Mark) -> None:
    with RedisServer(tmp_path, "--maxmemory", "1gb", "--maxmemory-policy", policy) as server:
        finding = worst(tmp_path, cache=server.unix)
        assert (finding.mark, policy in findings(tmp_path, cache=server.unix)[-1].text) == (mark, True)


def test_a_redis_user_without_info_is_a_warning_that_the_cache_works(tmp_path: Path, redis: RedisServer) -> None:
    redis.command("ACL", "SETUSER", "tea", "on", ">s3cret", "~samovar:*", "+@all", "-@dangerous")
    finding = worst(tmp_path, cache=f"redis://tea:s3cret@127.0.0.1:{redis.port}/0")
    assert (finding.mark, "responds; maxmemory and role cannot be checked" in finding.text) == (Mark.WARN, True)
    assert ("recomputes" in finding.text, "+info" in finding.fix) == (False, True)


def test_a_redis_that_is_a_replica_is_a_warning(tmp_path: Path, redis: RedisServer) -> None:
    redis.command("REPLICAOF", "127.0.0.1", "1")
    finding = worst(tmp_path, cache=redis.url)
    assert (finding.mark, "is a replica" in finding.text) == (Mark.WARN, True)


def test_a_redis_cluster_is_a_failure(tmp_path: Path) -> None:
    bus = RedisServer(tmp_path).port
    with RedisServer(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(bus)) as server:
        finding = worst(tmp_path, cache=server.url, cache_key=KEYS.text.strip())
    assert (finding.mark, "is a Redis Cluster" in finding.text) == (Mark.FAIL, True)


def test_an_unreachable_redis_is_a_warning_that_shows_no_password(tmp_path: Path) -> None:
    finding = worst(tmp_path, cache="redis://:s3cret@127.0.0.1:1/0")
    assert (finding.mark, "can't be reached" in finding.text) == (Mark.WARN, True)
    assert "s3cret" not in finding.text + finding.fix


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"cache": "redis://:s3cret@"}, "cache: must have a host"),
        ({"cache": "http://x"}, "cache: must be sqlite"),
        ({"cache": "redis://:s3cret#x@host/0"}, "cache: must not contain #; percent-encode the password"),
        (
            {"cache": "rediss://:s3cret@host/0?ssl_ca_cert=x"},
            "cache: has an unknown option ssl_ca_cert; did you mean ssl_ca_certs?",
        ),
        ({"cache_ttl": "soon"}, "cache_ttl: "),
        ({"cache_ttl": "1 s"}, "cache_ttl: "),
        ({"cache_max_bytes": "1 KiB"}, "cache_max_bytes: "),
    ],
)
def test_an_invalid_cache_address_or_limit_is_rejected_by_name(flags: dict[str, str], reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(flags)
    assert str(caught.value).startswith(reason)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(("text", "seconds"), [("7 days", 604_800), ("12h", 43_200), ("90", 90), ("5 min", 300)])
def test_durations_are_parsed_with_their_units(text: str, seconds: float) -> None:
    assert load({"cache_ttl": text}).cache_ttl == seconds


def test_settings_show_no_secret() -> None:
    settings = load({"cache": "redis://:s3cret@host/0", "cache_key": KEYS.text.strip()})
    assert "s3cret" not in repr(settings)
    assert KEYS.text.strip() not in repr(settings)
    assert settings.cache_url == "redis://:s3cret@host/0"
