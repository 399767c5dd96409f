"""Queue of jobs for the prompt workers: users take turns, and long jobs never delay short ones."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

from gateway.errors import QueueFullError
from gateway.prompts.messages import Encoded

SHORT_BYTES: Final = 64 << 10
"""Maximum bytes of a short job, which takes milliseconds with any content; a longer one may take seconds."""
USER_BYTES: Final = 16 << 20
"""Maximum bytes of one user's waiting jobs."""
ALL_BYTES: Final = 64 << 20
"""Maximum bytes of all waiting jobs."""


@dataclass(eq=False)
class Waiting:
    """One job from its arrival to its result."""

    user: str
    body: bytes
    result: asyncio.Future[Encoded] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    retried: bool = False
    """Whether the job has been sent to a second worker."""


class JobQueue:
    """Separate queues for short and long jobs: first in, first out per user, and round robin between users."""

    def __init__(self) -> None:
        """Create an empty queue."""
        self._short = _Turns()
        self._long = _Turns()

    def add(self, job: Waiting) -> None:
        """Append a job. Raises QueueFullError."""
        queues = (self._short, self._long)
        own, every = sum(queue.bytes_of(job.user) for queue in queues), sum(queue.bytes for queue in queues)
        if own + len(job.body) > USER_BYTES or every + len(job.body) > ALL_BYTES:
            raise QueueFullError("too many long requests are waiting to be tokenized; try again in a moment")
        self._queue(job).add(job)

    def add_first(self, job: Waiting) -> None:
        """Put a job whose worker died before all others."""
        self._queue(job).add_first(job)

    def take(self, *, short_only: bool) -> Waiting | None:
        """Remove and return the next job; without `short_only`, long jobs come first."""
        queues = (self._short,) if short_only else (self._long, self._short)
        return next((job for queue in queues if (job := queue.take()) is not None), None)

    def clear(self) -> list[Waiting]:
        """Remove and return all jobs."""
        return [*self._short.clear(), *self._long.clear()]

    def _queue(self, job: Waiting) -> _Turns:
        return self._short if len(job.body) <= SHORT_BYTES else self._long


class _Turns:
    """Round robin between users: a thousand jobs of one user delay another user by one job."""

    def __init__(self) -> None:
        self._users: OrderedDict[str, deque[Waiting]] = OrderedDict()
        self.bytes = 0

    def bytes_of(self, user: str) -> int:
        return sum(len(job.body) for job in self._users.get(user, ()))

    def add(self, job: Waiting) -> None:
        self._users.setdefault(job.user, deque()).append(job)
        self.bytes += len(job.body)

    def add_first(self, job: Waiting) -> None:
        self._users.setdefault(job.user, deque()).appendleft(job)
        self._users.move_to_end(job.user, last=False)
        self.bytes += len(job.body)

    def take(self) -> Waiting | None:
        while self._users:
            user, jobs = self._users.popitem(last=False)
            job = jobs.popleft()
            self.bytes -= len(job.body)
            if job.result.done():  # its request was cancelled, so the user keeps this turn
                if jobs:
                    self._users[user] = jobs
                    self._users.move_to_end(user, last=False)
                continue
            if jobs:
                self._users[user] = jobs
            return job
        return None

    def clear(self) -> list[Waiting]:
        jobs = [job for waiting in self._users.values() for job in waiting]
        self._users.clear()
        self.bytes = 0
        return jobs
