"""IP addresses as one spelling each: a dual-stack socket has IPv4 clients as `::ffff:a.b.c.d`."""

from __future__ import annotations

import ipaddress
from typing import Final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED_BITS: Final = 96
"""Length of the prefix `::ffff:`."""


def unmapped(address: str) -> str:
    """Return `address`, as IPv4 if it is an IPv4-mapped IPv6 address; what is no address stays as it is."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return address if mapped is None else str(mapped)


def network(text: str) -> Network:
    """Return an address or network as a network, as IPv4 if it is an IPv4-mapped one. Raises ValueError."""
    found = ipaddress.ip_network(text, strict=False)
    mapped = found.network_address.ipv4_mapped if isinstance(found, ipaddress.IPv6Network) else None
    if mapped is None or found.prefixlen < _MAPPED_BITS:
        return found
    return ipaddress.ip_network(f"{mapped}/{found.prefixlen - _MAPPED_BITS}")


def spellings(trusted: Network) -> list[str]:
    """Return a network as text, and an IPv4 one also as the IPv4-mapped network."""
    mapped = f"::ffff:{trusted.network_address}/{trusted.prefixlen + _MAPPED_BITS}"
    return [str(trusted), mapped] if isinstance(trusted, ipaddress.IPv4Network) else [str(trusted)]
