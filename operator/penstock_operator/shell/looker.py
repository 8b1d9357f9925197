"""Asks what plans want to know beyond objects: the last line of a log, a figure of Prometheus.

Promise: an answer comes within a bound, or a fault in its place; a reconcile never fails by a question.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp

from penstock_operator.plan.looks import LogTail, Look, Query, answer
from penstock_operator.shell.ports import ApiFault, Object

ANSWER_WITHIN_S = 5.0


class Logs(Protocol):
    async def log_line(self, namespace: str, pod: str, container: str) -> Object:
        """The last line of a container's log, a JSON object; ApiFault where there is none."""
        ...


@dataclass(slots=True)
class Prometheus:
    """Instant queries; `url` is the base, without a path of the API."""

    url: str
    _session: aiohttp.ClientSession | None = field(default=None, repr=False)

    async def query(self, expression: str) -> tuple[Any, str]:
        """The rows, and the fault where there are none."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_WITHIN_S))
        try:
            async with self._session.get(f"{self.url.rstrip('/')}/api/v1/query", params={"query": expression}) as response:
                said = await response.json(content_type=None)
                status = response.status
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            return None, f"{self.url} gives no answer: {type(error).__name__}"
        if status != 200 or not isinstance(said, dict) or said.get("status") != "success":
            told = said.get("error", "") if isinstance(said, dict) else ""
            return None, f"{self.url} answers {status}: {str(told)[:200]}".rstrip(": ")
        return (said.get("data") or {}).get("result"), ""

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


@dataclass(frozen=True, slots=True)
class Looker:
    logs: Logs
    prometheus: Prometheus

    async def ask(self, namespace: str, looks: Sequence[Look]) -> list[Object]:
        return list(await asyncio.gather(*(self._one(namespace, one) for one in looks)))

    async def _one(self, namespace: str, look: Look) -> Object:
        if isinstance(look, Query):
            return answer(look, *await self.prometheus.query(look.expression))
        return answer(look, *await self._line(namespace, look))

    async def _line(self, namespace: str, look: LogTail) -> tuple[Any, str]:
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                return await self.logs.log_line(namespace, look.pod, look.container), ""
        except (TimeoutError, ApiFault) as error:
            # A kubelet that is away, a container that has not spoken yet: the next reconcile asks again.
            return None, str(error) or "no answer in time"
