"""Readings of `/metrics`, and what can be told from two of them."""

from __future__ import annotations

import http.client
import math
import ssl
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gateway.cli.client import credentials

READ_SECONDS: Final = 5.0
MOST_BYTES: Final = 8 << 20


class UnreadableError(Exception):
    """The figures can't be had; the text says why."""


class Reading:
    """All figures of a gateway at one moment."""

    def __init__(self, text: str = "", at: float = 0.0) -> None:
        """Parse Prometheus's text format, read at `at` rising seconds; without text, a gateway that did nothing yet.

        Raises ValueError.
        """
        self.at = at
        self._samples: defaultdict[str, list[Sample]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples[sample.name].append(sample)

    def all(self, name: str, /, **labels: str) -> list[Sample]:
        """Samples of a name whose labels hold these."""
        return [sample for sample in self._samples.get(name, ()) if labels.items() <= sample.labels.items()]

    def sum(self, name: str, /, **labels: str) -> float | None:
        """Of these samples; None when there are none: not told is not zero."""
        samples = self.all(name, **labels)
        return sum(sample.value for sample in samples) if samples else None

    def values(self, name: str, label: str) -> list[str]:
        """The values that a label has, each once, in their order."""
        return list(dict.fromkeys(sample.labels[label] for sample in self.all(name)))


def increase(before: Reading, after: Reading, name: str, /, **labels: str) -> float | None:
    """By how much a counter rose; one that fell began anew with a gateway that was restarted."""
    then, now = before.sum(name, **labels), after.sum(name, **labels)
    if now is None or then is None or now < then:
        return now
    return now - then


def rate(before: Reading, after: Reading, name: str, /, **labels: str) -> float | None:
    """A counter's rise a second."""
    rise = increase(before, after, name, **labels)
    return None if rise is None or after.at <= before.at else rise / (after.at - before.at)


def quantile(before: Reading, after: Reading, name: str, share: float) -> float | None:
    """The value below which a share of a histogram's observations between two readings lies; None without any.

    Straight between the bounds of a bucket, as Prometheus's `histogram_quantile` has it.
    """
    buckets = sorted(_buckets(before, after, f"{name}_bucket").items())
    total = buckets[-1][1] if buckets else 0.0
    if total == 0:
        return None
    lower, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= share * total:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (share * total - below) / (count - below)
        lower, below = bound, count
    return lower


def _buckets(before: Reading, after: Reading, name: str) -> Mapping[float, float]:
    return {float(le): increase(before, after, name, le=le) or 0.0 for le in after.values(name, "le")}


class Source:
    """Where a gateway tells its figures."""

    def __init__(self, url: str, *, key: str = "", tls: ssl.SSLContext | None = None) -> None:
        """Read `/metrics` under `url`, with `key` for who stands before the gateway and wants one."""
        self.url = url.rstrip("/")
        self._request = urllib.request.Request(f"{self.url}/metrics", headers=credentials(key))  # noqa: S310 - checked
        # No proxy of the environment: the gateway is on this machine or near it.
        handlers = [urllib.request.ProxyHandler({}), *_https(tls)]
        self._opener = urllib.request.build_opener(*handlers)

    def read(self, at: float) -> Reading:
        """The figures now. Raises UnreadableError."""
        try:
            with self._opener.open(self._request, timeout=READ_SECONDS) as answer:
                return Reading(answer.read(MOST_BYTES).decode(), at)
        except urllib.error.HTTPError as error:
            error.close()
            raise UnreadableError(f"HTTP {error.code}") from error
        except urllib.error.URLError as error:
            reason = error.reason
            raise UnreadableError(str(getattr(reason, "strerror", None) or reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise UnreadableError(str(error) or type(error).__name__) from error
        except ValueError as error:
            raise UnreadableError("what answers there is no Samovar") from error


def _https(tls: ssl.SSLContext | None) -> Iterator[urllib.request.BaseHandler]:
    if tls is not None:
        yield urllib.request.HTTPSHandler(context=tls)
