"""Jobs that wait for a prompt worker: users take turns, and what is long has fewer workers than what is short."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

from gateway.errors import QueueFullError
from gateway.prompts.messages import Encoded

SHORT_BYTES: Final = 64 << 10
"""A job of at most so many bytes is done in milliseconds, whatever it says; a longer one may take seconds."""
USER_BYTES: Final = 16 << 20
"""Bytes of one user's waiting jobs at most."""
ALL_BYTES: Final = 64 << 20
"""Bytes of all waiting jobs at most."""


@dataclass(eq=False)
class Waiting:
    """One job from its arrival to its result."""

    user: str
    body: bytes
    result: asyncio.Future[Encoded] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    retried: bool = False
    """Whether it was given to a second worker already."""

    @property
    def short(self) -> bool:
        """Whether any worker may take it."""
        return len(self.body) <= SHORT_BYTES


class JobQueue:
    """First in, first out for each user; users in turns, so that one user's thousand jobs delay another's by one."""

    def __init__(self) -> None:
        """Start empty."""
        self._users: OrderedDict[str, deque[Waiting]] = OrderedDict()
        self._bytes = 0

    def add(self, job: Waiting) -> None:
        """Append a job. Raises QueueFullError."""
        own = sum(len(waiting.body) for waiting in self._users.get(job.user, ()))
        if own + len(job.body) > USER_BYTES or self._bytes + len(job.body) > ALL_BYTES:
            raise QueueFullError("too many long requests wait for their prompts to be read; try again in a moment")
        self._users.setdefault(job.user, deque()).append(job)
        self._bytes += len(job.body)

    def add_first(self, job: Waiting) -> None:
        """Put a job that lost its worker before all others."""
        self._users.setdefault(job.user, deque()).appendleft(job)
        self._users.move_to_end(job.user, last=False)
        self._bytes += len(job.body)

    def take(self, *, short_only: bool) -> Waiting | None:
        """Remove and return the next job that somebody still waits for; its user's next one waits a turn."""
        for user in list(self._users):
            jobs = self._users[user]
            while jobs and jobs[0].result.done():  # its request was cancelled
                self._bytes -= len(jobs.popleft().body)
            if not jobs:
                del self._users[user]
            elif jobs[0].short or not short_only:
                job = jobs.popleft()
                self._bytes -= len(job.body)
                if jobs:
                    self._users.move_to_end(user)
                else:
                    del self._users[user]
                return job
        return None

    def clear(self) -> list[Waiting]:
        """Remove and return all jobs."""
        jobs = [job for waiting in self._users.values() for job in waiting]
        self._users.clear()
        self._bytes = 0
        return jobs
