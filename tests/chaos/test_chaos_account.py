"""What fails a run, and what `make chaos` makes of its options."""

from typing import Any

import pytest
from chaos.client import Tally
from chaos.plan import BY_NAME, Shape
from chaos.run import arguments, faults_of
from chaos.scenario import Samples, Settings, account, faulty
from chaos.verdict import DEFECTS, REFUSED, RIGHT, ROUTER_BROKEN


def document(**changes: Any) -> dict[str, Any]:
    tally, samples = Tally(), Samples()
    tally.outcomes.update({RIGHT: 9, REFUSED: 3, ROUTER_BROKEN: 2} | changes.pop("outcomes", {}))
    tally.attempts = 14
    samples.counters.saw("r0", 1, {'penstock_router_legs_total{kind="whole",outcome="length"}': 12.0})
    samples.counters.saw("r0", 1, {'penstock_router_legs_total{kind="whole",outcome="length"}': 14.0})
    samples.counters.saw("r0", 2, {'penstock_router_legs_total{kind="decode",outcome="length"}': 3.0})
    samples.rss["r0", 1] = changes.pop("rss", [(float(t), 90.0) for t in range(3000)])
    settings = Settings(1, 9, ())
    return account(settings, tally, samples, [], 9, 10.0, **{"remains": [], "crashes": [], "bad": []} | changes)


def test_an_account_without_faults_passes_and_adds_up_over_incarnations() -> None:
    passed = document()
    assert faulty(passed) == []
    assert passed["upstream_attempts_per_call"] == 1.0
    assert passed["legs"] == {"decode,length": 3, "whole,length": 14}


@pytest.mark.parametrize("outcome", DEFECTS)
def test_one_defect_fails_the_run(outcome: str) -> None:
    assert faulty(document(outcomes={outcome: 1})) == [f"1 streams {outcome}"]


@pytest.mark.parametrize(("key", "said"), [("remains", "left over: x"), ("crashes", "crash: x"), ("bad", "log: x")])
def test_what_remains_crashes_or_complains_fails_the_run(key: str, said: str) -> None:
    assert faulty(document(**{key: ["x"]})) == [said]


def test_a_router_that_grows_all_its_long_life_fails_the_run() -> None:
    grows = [(float(t), 90.0 + t / 300) for t in range(3000)]
    assert faulty(document(rss=grows)) == ["memory: r0#1 grows by 204.8 KiB a minute"]
    assert faulty(document(rss=grows[:600])) == []


def test_every_nemesis_strikes_twenty_times_unless_told_otherwise() -> None:
    args = arguments(["--seed", "5"])
    faults = faults_of(args, Shape())
    assert all(sum(f.nemesis == name for f in faults) >= 20 for name in BY_NAME)
    only = faults_of(arguments(["--seed", "5", "--each", "3", "--only", "kill_worker,cut_link"]), Shape())
    assert {f.nemesis for f in only} == {"kill_worker", "cut_link"} and len(only) == 6


def test_an_unknown_nemesis_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(["--only", "kill_worker,rain"])
    assert "'rain' is none of kill_worker" in capsys.readouterr().err
