"""What the operator says of itself on 8080: /healthz, /readyz, /metrics.

Promise: unhealthy means that a restart may help (a silent watch, a reconcile that hangs), not ready that this replica could not
write now; each says why.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

OUT_OF_REACH_S = 60.0
STUCK_S = 120.0


@dataclass(slots=True)
class Health:
    """Written by the loops, read by the handlers; all times by one monotonic clock."""

    reached_at_s: float  # the API server's last answer
    leading: bool = False
    synced: bool = False  # every key known at the start has been looked at once
    busy_since_s: float | None = None  # the oldest reconcile that is under way
    silent: set[str] = field(default_factory=set)  # kinds whose watch owes events

    def troubles(self, now_s: float) -> list[str]:
        """What a restart may help against."""
        found = []
        if self.busy_since_s is not None and now_s - self.busy_since_s > STUCK_S:
            found.append(f"a reconcile has been under way for {now_s - self.busy_since_s:.0f} s")
        if self.silent:
            found.append(f"the watch of {', '.join(sorted(self.silent))} tells nothing of changes that a list shows")
        return found

    def ready(self, now_s: float) -> bool:
        """A standby is ready when it could take over."""
        within_reach = now_s - self.reached_at_s < OUT_OF_REACH_S
        return within_reach and not self.troubles(now_s) and (self.synced or not self.leading)


async def serve(listen: str, health: Health, registry: CollectorRegistry, clock: Callable[[], float]) -> web.AppRunner:
    """Returns once it listens; its caller cleans it up."""

    async def healthz(_: web.Request) -> web.Response:
        troubles = health.troubles(clock())
        return web.Response(status=503 if troubles else 200, text="\n".join(troubles or ["ok"]) + "\n")

    async def readyz(_: web.Request) -> web.Response:
        ready = health.ready(clock())
        return web.Response(status=200 if ready else 503, text=f"{'leading' if health.leading else 'standing by'}\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, _, port = listen.rpartition(":")
    await web.TCPSite(runner, host or None, int(port)).start()
    return runner
