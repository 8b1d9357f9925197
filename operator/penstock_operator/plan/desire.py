"""What a service should be made of now, from its spec and what was seen.

Promise: pure; a revision that exists is taken as it was frozen, and only a new one is made from the settings of this operator.
"""

from collections.abc import Mapping
from typing import Any

from penstock_operator.api import LLMService
from penstock_operator.plan.engines import freeze
from penstock_operator.plan.names import Identity
from penstock_operator.plan.observed import Observed
from penstock_operator.plan.render import Desired, RevisionDesired
from penstock_operator.plan.revision import revision_hash
from penstock_operator.plan.rollout import Limits, Step, rollout
from penstock_operator.plan.settings import OperatorSettings


def desire(service: LLMService, seen: Observed, settings: OperatorSettings, now_s: float) -> tuple[Desired, Step]:
    identity, spec = Identity.of(service), service.spec
    target = revision_hash(spec)
    pools = pool_sizes(service, seen)
    limits = Limits(spec.rollout.max_surge, spec.rollout.max_unavailable, settings.progress_deadline_s)
    step = rollout(seen.progress, target, pools, {one.hash: one for one in seen.revisions}, limits, now_s)
    records: dict[str, Mapping[str, Any]] = {one.hash: one.record for one in seen.revisions}
    if target not in records:
        records[target] = freeze(service, identity, settings, seen.cluster.storage_class).data()
    leaving = [one for one in seen.revisions if one.deleting]
    revisions = [RevisionDesired(name, records[name], sizes) for name, sizes in step.sizes.items()]
    revisions.sort(key=lambda one: one.hash != target)
    # A revision that is going away already is neither applied nor deleted once more.
    kept = tuple(one for one in revisions if one.hash not in {gone.hash for gone in leaving})
    return Desired(service, identity, kept, pools, seen.cluster.kinds), step


def pool_sizes(service: LLMService, seen: Observed) -> dict[str, int]:
    """The spec's replicas; where the autoscaler sets sizes, what the live children have, within its bounds."""
    spec, sizes = service.spec, {}
    for name, pool in spec.topology.pools.items():
        size = pool.replicas
        bounds = getattr(spec.autoscaling, name)
        if spec.autoscaling.mode == "on":
            size = sum(one.pools[name].size for one in seen.revisions if name in one.pools) or size
            if bounds is not None:
                size = min(max(size, bounds.min), bounds.max)
        sizes[name] = size
    return sizes
