"""Three minutes of `make chaos` from a fixed seed: every nemesis strikes, and every stream is whole, once and right."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from chaos.plan import BY_NAME, plan
from chaos.scenario import Settings, faulty, run

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SEED = int(os.environ.get("PENSTOCK_CHAOS_SEED", "20261121"))
SECONDS = 165.0
EACH = 2


def test_no_stream_is_lost_doubled_wrong_or_hung(tmp_path: Path) -> None:
    faults = plan(SEED, SECONDS, dict.fromkeys(BY_NAME, EACH))
    document = asyncio.run(run(Settings(SEED, 500, faults, concurrency=24), tmp_path))
    told = json.dumps(document, indent=1)
    print(
        f"\nchaos sample, seed {SEED}: {document['requests']} requests, {document['outcomes']}, failovers {document['failovers']}"
    )
    assert faulty(document) == [], told
    assert document["nemeses"] == dict.fromkeys(sorted(BY_NAME), EACH), told
    assert document["outcomes"]["right"] >= 500, told
    assert set(document["right_by_front"]) == {"grpc", "http"}, told
    # Chaos that moved no stream proves nothing.
    assert sum(document["failovers"].values()) > 0 and document["moved_streams"] > 0, told
