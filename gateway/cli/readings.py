"""Readings of `/metrics`, and rates and quantiles between two of them."""

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
    """The metrics cannot be read; the message says why."""


class Reading:
    """All metrics of a gateway at one moment."""

    def __init__(self, text: str = "", at: float = 0.0) -> None:
        """Parse Prometheus's text format, read at `at` (seconds of a monotonic clock).

        Empty text stands for a gateway that has not done anything yet. Raises ValueError.
        """
        self.at = at
        self._samples: defaultdict[str, list[Sample]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples[sample.name].append(sample)

    def all(self, name: str, /, **labels: str) -> list[Sample]:
        """Return the samples named `name` that have these labels."""
        return [sample for sample in self._samples.get(name, ()) if labels.items() <= sample.labels.items()]

    def sum(self, name: str, /, **labels: str) -> float | None:
        """Return the sum of the samples; None if there are none, since a missing metric is not zero."""
        samples = self.all(name, **labels)
        return sum(sample.value for sample in samples) if samples else None

    def values(self, name: str, label: str) -> list[str]:
        """Return the distinct values of a label, in order of appearance."""
        return list(dict.fromkeys(sample.labels[label] for sample in self.all(name)))


def increase(before: Reading, after: Reading, name: str, /, **labels: str) -> float | None:
    """Return the increase of a counter; a counter that fell was reset by a restart of the gateway."""
    then, now = before.sum(name, **labels), after.sum(name, **labels)
    if now is None or then is None or now < then:
        return now
    return now - then


def rate(before: Reading, after: Reading, name: str, /, **labels: str) -> float | None:
    """Return the increase of a counter per second."""
    rise = increase(before, after, name, **labels)
    return None if rise is None or after.at <= before.at else rise / (after.at - before.at)


def quantile(before: Reading, after: Reading, name: str, share: float) -> float | None:
    """Return the quantile `share` of a histogram's observations between two readings; None if there are none.

    Interpolates linearly within a bucket, as Prometheus's `histogram_quantile` does.
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
    """The `/metrics` route of a gateway."""

    def __init__(self, url: str, *, key: str = "", tls: ssl.SSLContext | None = None) -> None:
        """Read `/metrics` under `url`. `key` is for a proxy in front of the gateway that requires one."""
        self.url = url.rstrip("/")
        self._request = urllib.request.Request(f"{self.url}/metrics", headers=credentials(key))  # noqa: S310 - checked
        # Ignore proxies from the environment: the gateway is on this machine or near it.
        handlers = [urllib.request.ProxyHandler({}), *_https(tls)]
        self._opener = urllib.request.build_opener(*handlers)

    def read(self, at: float) -> Reading:
        """Read the metrics, labelled with time `at`. Raises UnreadableError."""
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
            raise UnreadableError("the server there is not a Samovar gateway") from error


def _https(tls: ssl.SSLContext | None) -> Iterator[urllib.request.BaseHandler]:
    if tls is not None:
        yield urllib.request.HTTPSHandler(context=tls)
