"""Canonical forms of IP addresses: a dual-stack socket reports IPv4 clients as `::ffff:a.b.c.d`."""

from __future__ import annotations

import ipaddress
from typing import Final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED_BITS: Final = 96
"""Length of the prefix `::ffff:`."""


def unmapped(address: str) -> str:
    """Return `address`, as IPv4 if it is an IPv4-mapped IPv6 address; other text is returned unchanged."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return address if mapped is None else str(mapped)


def network(text: str) -> Network:
    """Parse an address or network; an IPv4-mapped one becomes IPv4. Raises ValueError."""
    found = ipaddress.ip_network(text, strict=False)
    mapped = found.network_address.ipv4_mapped if isinstance(found, ipaddress.IPv6Network) else None
    if mapped is None or found.prefixlen < _MAPPED_BITS:
        return found
    return ipaddress.ip_network(f"{mapped}/{found.prefixlen - _MAPPED_BITS}")


def spellings(trusted: Network) -> list[str]:
    """Return the text of a network and, for IPv4, the text of the IPv4-mapped network."""
    mapped = f"::ffff:{trusted.network_address}/{trusted.prefixlen + _MAPPED_BITS}"
    return [str(trusted), mapped] if isinstance(trusted, ipaddress.IPv4Network) else [str(trusted)]
