"""Keeps the Lease: the effects around `lease`.

Promise: `may_write` is asked by its callers in the same step in which they send a write, and it is right without any task
having run in between: a process that was stopped for a minute finds out before it writes, not after.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from penstock_operator.shell import lease
from penstock_operator.shell.kinds import LEASE
from penstock_operator.shell.ports import Api, ApiFault, Clock, Refused

log = logging.getLogger(__name__)


class Leader:
    def __init__(
        self, api: Api, namespace: str, name: str, me: str, timing: lease.Timing, clock: Clock, wall: Clock,
        u: Callable[[], float], reached: Callable[[float], None],
    ) -> None:  # fmt: skip
        self._api = api
        self._namespace, self._name, self._me = namespace, name, me
        self._timing = timing
        self._clock, self._wall, self._u, self._reached = clock, wall, u, reached
        self._standing = lease.Standing()

    def may_write(self) -> bool:
        return lease.may_write(self._standing, self._timing, self._clock())

    async def acquire(self) -> None:
        """Returns when this process leads."""
        while not self.may_write():
            await self._step()
            if not self.may_write():
                await asyncio.sleep(self._timing.retry_s * (0.9 + 0.2 * self._u()))

    async def hold(self) -> None:
        """Returns when this process no longer leads."""
        while self.may_write():
            await asyncio.sleep(self._timing.retry_s)
            if self.may_write():
                await self._step()

    async def release(self) -> None:
        body = lease.released(self._standing, self._namespace, self._name) if self.may_write() else None
        self._standing = lease.Standing()
        if body is not None:
            with contextlib.suppress(ApiFault):
                await self._api.replace(LEASE, body)

    async def _step(self) -> None:
        try:
            found = await self._api.get(LEASE, self._namespace, self._name)
            now = self._clock()
            self._reached(now)
            self._standing = lease.observed(self._standing, found, now)
            verdict = lease.decide(self._standing, self._me, self._timing, now)
            if verdict == "wait":
                # Somebody else's: whatever we held, we hold no more.
                self._standing = lease.Standing(self._standing.seen, self._standing.seen_at_s)
                return
            body = lease.body(self._standing, self._namespace, self._name, self._me, self._timing, self._wall())
            written = await (self._api.create(LEASE, body) if verdict == "create" else self._api.replace(LEASE, body))
            self._standing = lease.wrote(self._standing, written, now, self._clock())
            if verdict != "renew":
                log.info("leading: %s %s/%s as %s", verdict, self._namespace, self._name, self._me)
        except Refused as error:
            # 409: another was faster, or our own write held and its answer was lost; the next look tells.
            log.log(
                logging.INFO if error.status == 409 else logging.WARNING, "lease %s/%s: %s", self._namespace, self._name, error
            )
        except ApiFault as error:
            log.warning("lease %s/%s: %s", self._namespace, self._name, error)
