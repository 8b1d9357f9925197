"""What a cluster should hold for an LLMService: pure, from objects to objects.

Promise: nothing here reads a clock, a socket or a cluster. One reconcile is

    observed = read(document, children, cluster)                 # plain objects, as the API server has them -> values
    plan     = reconcile(document, observed, settings, now_s)    # objects to apply in order, deletions, status, events

`reconcile` is `check`, `desire`, `rollout`, `render` and `conditions` put together; the shell applies its plan and does nothing
else. The same observation gives the same plan, and a plan that was applied gives itself again.
"""

from penstock_operator.plan.observed import Cluster, Observed, PoolSeen, Progress, RevisionSeen, RoutersSeen, Trouble
from penstock_operator.plan.read import read
from penstock_operator.plan.reconcile import Event, Plan, Ref, reconcile
from penstock_operator.plan.settings import OperatorSettings, load_settings

__all__ = [
    "Cluster",
    "Event",
    "Observed",
    "OperatorSettings",
    "Plan",
    "PoolSeen",
    "Progress",
    "Ref",
    "RevisionSeen",
    "RoutersSeen",
    "Trouble",
    "load_settings",
    "read",
    "reconcile",
]
