"""`samovar keys add|list|usage|limit|rotate|revoke|delete …`: manage users and API keys; a key is shown once"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import datetime
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from cache import KeyMismatchError, KeyRing, Ledger, StoreError
from cache import shown as shown_url
from gateway.auth.principal import Limits, shown
from gateway.auth.reports import Days, described, periods, usage_csv
from gateway.auth.user import User
from gateway.auth.users import UserError, Users, exist
from gateway.cli import CommandError
from gateway.config.durations import parse_duration
from gateway.config.settings import Settings

SETTINGS: Final = ()
ERASE_SECONDS: Final = 15.0
"""Seconds to wait for the gateway to erase a user."""
_NO_USERS: Final = "No users: everybody who can reach the gateway may chat. See: samovar keys add --help"
_AWAY: Final = "other gateways receive the change once the store is back and this gateway runs"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `add NAME`, `list`, `usage`, `limit NAME`, `rotate NAME`, `revoke NAME` and `delete NAME`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="add|list|usage|limit|rotate|revoke|delete")
    text = "create a user with an API key, and print the key: it cannot be shown again"
    add = actions.add_parser("add", help=text, description=text)
    add.add_argument("name", metavar="NAME", help="letters, digits and . @ + - _")
    add.add_argument("--admin", action="store_true", help="the user may open /admin and /monitor")
    add.add_argument("--expires", type=_moment, metavar="WHEN", help="when the key expires: 90d, 12h, 2027-01-31")
    _declare_limits(add, _count)
    text = "list users, their limits and their usage"
    listed = actions.add_parser("list", help=text, description=text)
    listed.add_argument("--json", action="store_true", help="print JSON")
    text = "list the tokens of each user: today, in the last 7 and 30 days, and in all"
    used = actions.add_parser("usage", help=text, description=text)
    used.add_argument("--csv", action="store_true", help="print one line per user and day of the last 31 days, as CSV")
    text = "change a user's limits; they also apply to open connections, within two seconds"
    limit = actions.add_parser("limit", help=text, description=text)
    limit.add_argument("name", metavar="NAME")
    _declare_limits(limit, _count_or_none)
    text = "replace a user's key and print the new one; conversations, limits and usage stay"
    rotate = actions.add_parser("rotate", help=text, description=text)
    rotate.add_argument("name", metavar="NAME")
    rotate.add_argument(
        "--grace", type=_duration, metavar="TIME", default=0.0, help="how long the old key works on: 24h"
    )
    rotate.add_argument("--expires", type=_moment, metavar="WHEN", help="when the new key expires, if not as before")
    text = "revoke a key, and close its connections within two seconds"
    revoke = actions.add_parser("revoke", help=text, description=text)
    revoke.add_argument("name", metavar="NAME")
    text = "revoke a key and erase the user's conversations, turns, copies, KV blocks and usage at all gateways"
    delete = actions.add_parser("delete", help=text, description=text)
    delete.add_argument("name", metavar="NAME")
    delete.add_argument("--data", action="store_true", required=True, help="confirm that all data is erased")


def _declare_limits(parser: argparse.ArgumentParser, count: Callable[[str], int | None]) -> None:
    """Declare the options that set limits. Those that are not given are no attributes of the result."""
    none = "" if count is _count else "; none removes it"
    for name, text in (
        ("--tokens-per-day", f"limit of computed prompt tokens plus generated tokens, per day of the gateway{none}"),
        ("--tokens-per-minute", f"the same per minute{none}"),
        ("--concurrency", f"responses in flight, instead of user_concurrency{none}"),
    ):
        parser.add_argument(name, type=count, metavar="N", default=argparse.SUPPRESS, help=text)
    text = "share of the engines relative to other users; 1 unless given"
    parser.add_argument("--weight", type=_weight, metavar="W", default=argparse.SUPPRESS, help=text)


def _limits(options: argparse.Namespace) -> dict[str, float | None]:
    """Return the limits that were given, by name."""
    names = (field.name for field in dataclasses.fields(Limits))
    return {name: getattr(options, name) for name in names if name in options}


def run(settings: Settings, options: argparse.Namespace) -> int:
    """Run the action. Raises CommandError."""
    try:
        asyncio.run(_run(settings, options))
    except (StoreError, UserError) as error:
        raise CommandError(str(error)) from error
    return 0


def has_keys(settings: Settings) -> bool:
    """Return whether the gateway requires API keys. Raises CommandError."""
    try:
        return asyncio.run(_exist(settings))
    except StoreError as error:
        raise CommandError(str(error)) from error


async def _exist(settings: Settings) -> bool:
    source = settings.key_source
    if (
        isinstance(source, Path) and not source.exists()
    ):  # nothing can have been encrypted with it, and a check must not create it
        return await exist(settings.state_dir)
    with _ledger(settings) as ledger:
        return await exist(settings.state_dir, ledger)


@contextmanager
def _ledger(settings: Settings) -> Iterator[Ledger | None]:
    """Open the ledger through which gateways share users; None for a single gateway. Raises StoreError."""
    if not Ledger.serves(settings.cache_url):
        yield None
        return
    ledger = Ledger(settings.cache_url, KeyRing.load(settings.key_source))
    try:
        yield ledger
    finally:
        ledger.close()


async def _run(settings: Settings, options: argparse.Namespace) -> None:
    with _ledger(settings) as ledger:
        if ledger is not None:
            await _check_key(ledger)
        users = Users(settings.state_dir, ledger=ledger)
        try:
            await users.share()
            await _do(users, options)
            if users.unpublished:
                print(f"{shown_url(settings.cache_url)} does not answer: {_AWAY}", file=sys.stderr)
        finally:
            users.close()


async def _check_key(ledger: Ledger) -> None:
    """Raise KeyMismatchError if the ledger was written with another cache_key."""
    try:
        await ledger.check_key()
    except KeyMismatchError:
        raise
    except StoreError:  # the store is down: reported after the action
        return


async def _do(users: Users, options: argparse.Namespace) -> None:
    if options.action == "add":
        limits: Any = _limits(options)
        first = not await users.all()
        key = await users.add(options.name, admin=options.admin, expires_at=options.expires, limits=Limits(**limits))
        if first:
            print("From now on every request under /v1 needs an API key, from this machine too.", file=sys.stderr)
        _print_key(key)
    elif options.action == "limit":
        await _limit(users, options)
    elif options.action == "usage":
        await _show_usage(users, as_csv=options.csv)
    elif options.action == "rotate":
        _print_key(await users.rotate(options.name, grace=options.grace, expires_at=options.expires))
    elif options.action == "revoke":
        await users.revoke(options.name)
    elif options.action == "delete":
        await _erase(users, options.name)
    else:
        await users.check()
        everybody = await users.all_with_total_usage()
        if options.json:
            now = time.time()
            print(json.dumps([described(user, now) for user in everybody], ensure_ascii=False, indent=2))
        elif everybody:
            _print(_table(everybody))
        else:
            print(_NO_USERS)


async def _erase(users: Users, name: str) -> None:
    """Have a user erased, and wait until the gateway of this state folder has done it."""
    tenant = await users.erase(name)
    until = time.monotonic() + ERASE_SECONDS
    while time.monotonic() < until:
        if tenant not in await users.erasures.pending():
            print(f"The data of {name} is erased at this gateway.", file=sys.stderr)
            return
        await asyncio.sleep(0.1)
    print(
        f"{name} has no access any more, but no gateway has erased the data yet: the gateway with this state_dir does "
        "it as soon as it runs. Leave its files in place until then.",
        file=sys.stderr,
    )


def _print_key(key: str) -> None:
    print("Save this key: it is shown only once and stored as a hash.", file=sys.stderr)
    print(key)


async def _limit(users: Users, options: argparse.Namespace) -> None:
    limits = _limits(options)
    if not limits:
        raise CommandError("no limit is given; for example: --tokens-per-day 100000, or --tokens-per-day none")
    await users.limit(options.name, limits)


async def _show_usage(users: Users, *, as_csv: bool) -> None:
    await users.check()
    everybody, days = await users.all_with_total_usage(), await users.usage.days()
    if as_csv:
        sys.stdout.write(usage_csv(everybody, days))
    elif everybody:
        _print(_usage_table(everybody, days))
    else:
        print(_NO_USERS)


def _usage_table(users: list[User], days: Mapping[str, Days]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("name", "id in logs"):
        table.add_column(name)
    for name in (
        "tokens today",
        "per day",
        "7 days",
        "30 days",
        "total",
        "requests today",
        "7 days",
        "30 days",
        "total",
    ):
        table.add_column(name, justify="right")
    for user in users:
        plain, sums = described(user, time.time()), periods(days.get(user.tenant, {}), time.time())
        rows = [
            [plain[f"{unit}_today"], *(sums[period][unit] for period in ("7_days", "30_days")), plain[unit]]
            for unit in ("tokens", "requests")
        ]
        tokens, requests = ([f"{figure:,}" for figure in row] for row in rows)
        allowance = "" if user.tokens_per_day is None else f"of {user.tokens_per_day:,}"
        table.add_row(user.name, shown(user.tenant), tokens[0], allowance, *tokens[1:], *requests)
    return table


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _table(users: list[User]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    limits = ("tokens/day", "tokens/min", "in flight", "weight")
    for name in ("name", "id in logs", "key", "expires", *limits, "last used"):
        table.add_column(name)
    for name in ("requests today", "total", "tokens today", "total"):
        table.add_column(name, justify="right")
    for user in users:
        plain = described(user, time.time())
        figures = (plain[name] for name in ("requests_today", "requests", "tokens_today", "tokens"))
        table.add_row(
            user.name,
            shown(user.tenant),
            f"{plain['state']}{', admin' if user.admin else ''}",
            _date(user.expires_at),
            *("" if limit is None else f"{limit:,}" for limit in (user.tokens_per_day, user.tokens_per_minute)),
            "" if user.concurrency is None else f"{user.concurrency}",
            f"{user.weight:g}",
            _date(user.last_used),
            *(f"{figure:,}" for figure in figures),
        )
    return table


def _date(moment: int | None) -> str:
    return "" if moment is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def _moment(text: str) -> int:
    """Parse a moment in the future, as seconds since the epoch: a duration from now, or a local date or time."""
    is_span = re.fullmatch(r"[0-9.]+\s*[a-z]+\s*", text, re.IGNORECASE)  # a bare number may be a truncated date
    try:
        if is_span:
            moment = time.time() + parse_duration(text)
        else:
            moment = datetime.datetime.fromisoformat(text).astimezone().timestamp()
        time.localtime(moment)  # fails for years that `keys list` cannot print
    except (ValueError, OverflowError, OSError) as error:
        raise argparse.ArgumentTypeError(
            f"{text} is neither a duration such as 90d nor a date such as 2027-01-31"
        ) from error
    if moment <= time.time():
        raise argparse.ArgumentTypeError(f"{text} is in the past")
    return int(moment)


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a duration such as 24h") from error


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return int(text)


def _count_or_none(text: str) -> int | None:
    try:
        return None if text == "none" else _count(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; `none` removes the limit") from error


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0.01 <= weight <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.01 and 100")
    return weight
