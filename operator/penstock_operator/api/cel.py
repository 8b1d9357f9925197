"""The cross-field rules of the manifest, in CEL, for the API server.

Promise: every rule that `llmservice` checks between fields stands here under the model and field it belongs to, with a message
that names the field; rules about one value alone are in the schema itself. `engine.args` are the exception: CEL cannot read
values without a type, so they are checked by `penstock validate`, in every reconcile and by the worker.
"""

from dataclasses import dataclass

from penstock_operator.api.rules import GPU_RESOURCE, NAME_MAX, SOURCES, accepted


@dataclass(frozen=True, slots=True)
class Rule:
    """`message` says what would be accepted; the API server puts the field's path before it."""

    cel: str
    message: str


def _source(*schemes: str) -> Rule:
    pattern = "|".join(SOURCES[one][1] for one in schemes).replace("\\", "\\\\")
    up = r"!self.matches('/\\.\\.(/|$)')"
    return Rule(f"self.matches('^({pattern})$') && {up}", f"source is none of {accepted(schemes)}")


_RESOURCES = (
    Rule("self.all(key, key in ['requests', 'limits'])", "keys are requests and limits"),
    Rule(
        f"self.all(key, !('{GPU_RESOURCE}' in self[key]))",
        f"{GPU_RESOURCE} follows from topology.<pool>.parallelism; remove it",
    ),
)
_SERVED_NAME = "(has({0}.name) && {0}.name != '' ? {0}.name : {0}.source.find('[^/]+/*$').replace('/', ''))"
_SPLIT = "(has(self.prefill) || has(self.decode))"
_ANY_POOL = "(has(self.topology.prefill) || has(self.topology.decode) || has(self.topology.workers))"


def _autoscaled(pool: str) -> Rule:
    given = f"has(self.autoscaling) && has(self.autoscaling.{pool})"
    known = f"!has(self.topology) || !{_ANY_POOL} || has(self.topology.{pool})"
    return Rule(f"!({given}) || {known}", f"autoscaling.{pool} names a pool that topology does not have")


# (model, field or None for the model itself) -> rules.
RULES: dict[tuple[str, str | None], tuple[Rule, ...]] = {
    ("Adapter", "source"): (_source("hf", "pvc", "s3", "file"),),
    ("Model", "source"): (_source("hf", "pvc", "s3", "file", "penstock"),),
    ("Model", None): (
        Rule(
            f"{_SERVED_NAME.format('self')} == {_SERVED_NAME.format('oldSelf')}",
            "name: the served name may not change, clients ask for it; keep it in model.name, or make another LLMService",
        ),
    ),
    ("EnvVar", None): (Rule("!has(self.value) || !has(self.valueFrom)", "give value or valueFrom, not both"),),
    ("Pool", "resources"): _RESOURCES,
    ("Router", "resources"): _RESOURCES,
    ("Topology", None): (
        Rule(
            f"self.mode != 'colocated' || !{_SPLIT}",
            "mode colocated has one pool, workers; prefill and decode belong to disaggregated",
        ),
        Rule(
            "self.mode != 'disaggregated' || !has(self.workers)",
            "mode disaggregated has the pools prefill and decode; workers belongs to colocated",
        ),
        Rule(f"!has(self.workers) || !{_SPLIT}", "give workers, or prefill and decode, not both"),
        Rule("!has(self.prefill) || has(self.decode)", "decode is missing beside the other pool"),
        Rule("!has(self.decode) || has(self.prefill)", "prefill is missing beside the other pool"),
        Rule("self.mode != 'colocated' || has(self.workers)", "mode colocated needs the pool workers"),
        Rule(f"self.mode != 'disaggregated' || {_SPLIT}", "mode disaggregated needs the pools prefill and decode"),
    ),
    ("Slo", None): (
        Rule(
            "!has(self.defaultClass) || self.defaultClass == '' || "
            "(has(self.classes) && self.classes.exists(one, one.name == self.defaultClass))",
            "defaultClass is none of the classes",
        ),
    ),
    ("Range", None): (Rule("self.min <= self.max", "min is above max"),),
    ("Rollout", None): (
        Rule(
            "self.maxSurge > 0 || self.maxUnavailable > 0",
            "maxSurge and maxUnavailable are both 0, so that no rollout could proceed",
        ),
    ),
    ("Spec", None): tuple(_autoscaled(pool) for pool in ("prefill", "decode", "workers")),
    ("LLMService", None): (
        Rule(
            f"self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && self.metadata.name.size() <= {NAME_MAX}",
            f"metadata.name must begin with a letter, hold a-z, 0-9 and -, and have at most {NAME_MAX} characters",
        ),
    ),
}

# (model, field) -> key of a list that server-side apply merges item by item; other lists are atomic.
LIST_KEYS: dict[tuple[str, str], str] = {
    ("Model", "adapters"): "name",
    ("Engine", "env"): "name",
    ("Slo", "classes"): "name",
    ("Fairness", "tenants"): "name",
    ("Status", "pools"): "name",
    ("Status", "slo"): "class",
    ("Status", "conditions"): "type",
}
