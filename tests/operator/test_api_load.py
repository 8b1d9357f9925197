"""Reading an LLMService."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from penstock_operator.api import ManifestError, default_text, load, unsupported, without_effect

# The manifest of interfaces.md, elisions filled in.
FULL = """
apiVersion: serving.penstock.dev/v1alpha1
kind: LLMService
metadata: {name: chat, namespace: prod, labels: {team: a}}
spec:
  model:
    source: hf://Qwen/Qwen3-8B
    name: qwen3-8b
    secretRef: {name: hf-token}
    cache: {pvc: model-cache}
    adapters: [{name: sql, source: "hf://org/sql-lora"}]
  engine:
    device: gpu
    image: registry/penstock:1
    env: [{name: A, value: b}, {name: C, valueFrom: {secretKeyRef: {name: s, key: k}}}]
    shm: 8Gi
    args: {max-model-len: 32768}
  topology:
    mode: auto
    prefill: {replicas: 2, parallelism: {tensor: 2, pipeline: 1}, resources: {limits: {cpu: 4, memory: 64Gi}},
              nodeSelector: {gpu: h100}, tolerations: [{key: gpu, operator: Exists}]}
    decode:  {replicas: 2, parallelism: {tensor: 2}}
  slo:
    attainment: 0.99
    defaultClass: interactive
    classes:
      - {name: interactive, ttft: 500ms, tpot: 50ms, priority: 10}
      - {name: batch, ttft: 60s, tpot: 500ms, priority: 0}
  fairness: {tenants: [{name: team-a, weight: 2}], defaultWeight: 1}
  auth: {apiKeysSecret: chat-keys}
  tls: {mode: chart}
  autoscaling:
    mode: on
    prefill: {min: 1, max: 8}
    decode: {min: 1, max: 8}
    scaleToZeroAfter: 30m
  rollout: {maxSurge: 1, maxUnavailable: 0, drainTimeout: 10m}
  router: {replicas: 2, service: {type: ClusterIP}, resources: {requests: {cpu: 500m}}}
  paused: false
status:
  observedGeneration: 3
  phase: Ready
  endpoint: {grpc: "a:9000", http: "a:8000"}
  revision: {current: x, updated: y}
  pools: [{name: prefill, desired: 2, ready: 2, draining: 0}]
  slo: [{class: interactive, ttftAttained: 0.997, tpotAttained: 0.999}]
  scaling: {reason: load, lastChange: now}
  conditions: [{type: Ready, status: "True"}]
"""


def edited(path: str, value: Any) -> str:
    """The built-in manifest with one field set; `...` removes it."""
    document = yaml.safe_load(default_text())
    *parents, leaf = path.split(".")
    part = document
    for key in parents:
        part = part.setdefault(key, {})
    if value is ...:
        del part[leaf]
    else:
        part[leaf] = value
    return yaml.safe_dump(document)


def test_every_field_of_the_manifest_is_read() -> None:
    service = load(FULL)
    spec = service.spec
    assert service.metadata.name == "chat" and spec.model.served_name == "qwen3-8b"
    assert spec.autoscaling.mode == "on" and spec.autoscaling.scale_to_zero_after == 1800
    assert spec.slo.classes[0].ttft == 0.5 and spec.slo.classes[1].ttft == 60 and spec.slo.default == "interactive"
    assert spec.topology.prefill is not None and spec.topology.prefill.parallelism.tensor == 2
    assert spec.topology.prefill.resources == {"limits": {"cpu": "4", "memory": "64Gi"}}
    assert spec.rollout.drain_timeout == 600 and list(spec.topology.pools) == ["prefill", "decode"]
    assert service.status is not None and service.status.slo[0].service_class == "interactive"


def test_what_was_read_is_written_back_the_same() -> None:
    service = load(FULL)
    dumped = service.model_dump(by_alias=True, mode="json", exclude_none=True)
    assert load(yaml.safe_dump(dumped)) == service
    assert dumped["spec"]["slo"]["classes"][0]["ttft"] == "500ms" and dumped["spec"]["autoscaling"]["mode"] == "on"


def test_the_built_in_service_is_one_prefill_and_one_decode_worker_and_runs_as_it_is() -> None:
    spec = load(default_text()).spec
    assert spec.model.source == "penstock://tiny" and spec.engine.device == "cpu"
    assert {name: pool.replicas for name, pool in spec.topology.pools.items()} == {"prefill": 1, "decode": 1}
    assert unsupported(spec) == [] and without_effect(spec) == []


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("apiVersion", "v1", "apiVersion: 'v1' is not serving.penstock.dev/v1alpha1"),
        ("kind", ..., "kind: None is not LLMService"),
        ("metadata.name", "Chat_1", "metadata.name: 'Chat_1'"),
        ("metadata.name", ..., "metadata.name: is required"),
        ("spec.modle", {}, "spec.modle: no such field"),
        ("spec.model.source", "ftp://x", "spec.model.source: 'ftp://x' is none of hf://"),
        ("spec.model.source", "hf://", "spec.model.source"),
        ("spec.model.source", "penstock://huge", "penstock://tiny"),
        ("spec.model.adapters", [{"name": "a", "source": "penstock://tiny"}], "spec.model.adapters[0].source"),
        ("spec.engine.device", "tpu", "spec.engine.device: 'tpu': input should be 'gpu' or 'cpu'"),
        ("spec.engine.shm", "8GB", "spec.engine.shm: '8GB' is not a quantity"),
        ("spec.engine.env", [{"name": "1A", "value": "b"}], "spec.engine.env[0].name"),
        ("spec.engine.env", [{"name": "A", "value": "b", "valueFrom": {}}], "not both"),
        ("spec.topology.prefill.replicas", -1, "spec.topology.prefill.replicas: -1: input should be greater"),
        ("spec.topology.prefill.replicas", "2", "spec.topology.prefill.replicas: '2': input should be a valid integer"),
        ("spec.topology.prefill.replicas", True, "spec.topology.prefill.replicas"),
        ("spec.topology.prefill.parallelism", {"expert": 2}, "spec.topology.prefill.parallelism.expert: no such field"),
        ("spec.topology.prefill.resources", {"limit": {}}, "'limit' is neither requests nor limits"),
        ("spec.topology.mode", "colocated", "spec.topology: mode colocated has one pool"),
        ("spec.topology.decode", ..., "decode is missing"),
        ("spec.topology", {"mode": "disaggregated"}, "needs the pools prefill and decode"),
        ("spec.topology", {"mode": "colocated"}, "needs the pool workers"),
        ("spec.topology", {"workers": {}, "prefill": {}, "decode": {}}, "not both"),
        ("spec.slo.attainment", 1.0, "spec.slo.attainment: 1.0: input should be less than 1"),
        ("spec.slo.defaultClass", "gold", "spec.slo: defaultClass 'gold' is none of the classes: interactive, batch"),
        ("spec.slo.classes", [{"name": "a", "ttft": "5x", "tpot": "1s"}], "spec.slo.classes[0].ttft: '5x' is not a duration"),
        ("spec.slo.classes", [{"name": "a", "ttft": 5, "tpot": "1s"}], "spec.slo.classes[0].ttft: 5 is not a duration"),
        ("spec.slo.classes", [{"name": "a", "ttft": "0s", "tpot": "1s"}], "spec.slo.classes[0].ttft: '0s' must be above 0"),
        ("spec.fairness", {"tenants": [{"name": "a"}, {"name": "a"}]}, "tenants has the name 'a' twice"),
        ("spec.tls", {"mode": "on"}, "spec.tls.mode: 'on': input should be 'off', 'chart' or 'certManager'"),
        ("spec.autoscaling", {"prefill": {"min": 3, "max": 2}}, "min 3 is above max 2"),
        ("spec.autoscaling", {"workers": {"max": 2}}, "autoscaling.workers names a pool that topology does not have"),
        ("spec.rollout", {"maxSurge": 0, "maxUnavailable": 0}, "both 0"),
        ("spec.router.replicas", 0, "spec.router.replicas: 0: input should be greater than or equal to 1"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line_that_names_the_field(path: str, value: Any, told: str) -> None:
    with pytest.raises(ManifestError) as caught:
        load(edited(path, value))
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"max-model-ln": 1}, "did you mean max-model-len"),
        ({"model": "x"}, "use model.source"),
        ({"tensor-parallel-size": 2}, "topology.<pool>.parallelism.tensor"),
        ({"data-parallel-size": 2}, "topology.<pool>.replicas"),
        ({"enable_prefix_caching": False}, "routing needs the prefix cache"),
        ({"no-enforce-eager": True}, "enforce-eager: false"),
        ({"max-model-len": "32k"}, "max-model-len: '32k' is not of type int"),
        ({"max-num-seqs": True}, "max-num-seqs: True is not of type int"),
        ({"enforce-eager": 1}, "enforce-eager: 1 is not of type bool"),
        ({"dtype": "int8"}, "dtype: 'int8' is none of auto, half"),
        ({"max-model-len": 1, "max_model_len": 2}, "are the same argument"),
        ({"revision": "v1"}, "use model.source, hf://ORG/NAME@REVISION"),
        ({"max-lora-rank": 8}, "until model.adapters are built"),
        ({"kv-offloading-size": 4}, "Penstock's own connector moves KV"),
        ({"prefill-context-parallel-size": 2}, "topology.<pool>.parallelism.tensor"),
        ({"compilation-config": 3}, "compilation-config: 3 is not of type dict"),
        ({"compilation-config": {"moed": 3}}, "compilation-config: 'moed' is no key of it; did you mean mode"),
        ({"ignore-patterns": 3}, "ignore-patterns: 3 is not of type list or str"),
    ],
)
def test_engine_args_are_checked_against_the_pinned_vllm(args: dict[str, Any], told: str) -> None:
    with pytest.raises(ManifestError) as caught:
        load(edited("spec.engine.args", args))
    assert str(caught.value).startswith("spec.engine.args: ") and told in str(caught.value)


def test_engine_args_may_be_written_as_on_the_command_line_or_in_python() -> None:
    args = {
        "max-model-len": 4096, "dtype": "float32", "gpu_memory_utilization": 1, "max-num-seqs": None, "tokenizer-mode": "auto",
        "compilation-config": {"mode": 3}, "ignore-patterns": ["original/*"], "speculative-config": {"num_speculative_tokens": 3},
    }  # fmt: skip
    assert load(edited("spec.engine.args", args)).spec.engine.args == args


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds 0 documents"),
        ("a: 1\n---\nb: 2\n", "holds 2 documents"),
        ("- 1\n", "is no mapping"),
        ("a: [\n", "line 2: not YAML"),
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is given twice"),
        ("a: !!python/object:os.system {}\n", "not YAML"),
    ],
)
def test_text_that_is_no_manifest_is_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(ManifestError) as caught:
        load(text)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"nothing\.yaml: No such file"):
        load(tmp_path / "nothing.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ManifestError, match="UTF-8"):
        load(tmp_path / "b.yaml")
    (tmp_path / "good.yaml").write_text(default_text())
    assert load(tmp_path / "good.yaml") == load(default_text())
