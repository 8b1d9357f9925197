"""Lets NIXL's progress thread sleep between events.

Promise: an idle engine uses no CPU. NIXL's Python binding fixes the thread's delay at 0, which polls without
end: a whole core for each engine. With a delay the thread blocks in poll(), and UCX events still wake it.
"""

import sys
from typing import Any


def sleep_between_events(agent_class: Any, delay_us: int) -> None:
    """`agent_class` is NIXL's agent; applies to the agents made afterwards in this process. Idempotent."""
    bindings = sys.modules[agent_class.__module__].nixlBind
    config = getattr(bindings.nixlAgentConfig, "_penstock_base", bindings.nixlAgentConfig)

    class QuietConfig(config):  # type: ignore[misc, valid-type]
        _penstock_base = config

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, delay_us if name == "pthrDelay" else value)

    bindings.nixlAgentConfig = QuietConfig
