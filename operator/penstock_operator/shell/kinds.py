"""The kinds the shell itself reads and writes.

Promise: nothing here depends on what a plan holds.
"""

from penstock_operator.shell.ports import Kind

LLM_SERVICE = Kind("serving.penstock.dev/v1alpha1", "LLMService", "llmservices")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
EVENT = Kind("v1", "Event", "events")
