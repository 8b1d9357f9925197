"""The cost model: predictions, fitting under noise, pooling by shape."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock_policy.cost.fit import (
    WINDOW,
    StepSample,
    TransferSample,
    fit,
    fit_transfer,
    start_step,
    start_transfer,
)
from penstock_policy.cost.model import (
    MEASURED_SAMPLES,
    PRIOR,
    TRANSFER_PRIOR,
    CostObservation,
    StepCost,
    TransferCost,
    pool,
    predict_tpot,
    predict_ttft,
    settle,
)

TRUE = StepCost(2e-3, 1.1e-4, 2e-4, 4e-7)
loads = st.floats(0, 1e5)


def mixed_steps(rng, cost, count, noise=0.05, outliers=0.0):
    """Decode steps of a changing batch, every tenth with a prefill chunk, as an engine sees them."""
    for at in range(count):
        decodes = rng.randrange(0, 64)
        context = decodes * rng.randrange(50, 2000)
        prefill = rng.randrange(16, 1024) if at % 10 == 0 or not decodes else 0
        seconds = cost.step_s(prefill, decodes, context) * (1 + rng.uniform(-noise, noise))
        if rng.random() < outliers:
            seconds *= rng.uniform(5, 100)
        yield StepSample(seconds, prefill, decodes, context)


def fitted(samples, state=None):
    state = state or start_step()
    for sample in samples:
        state = fit(state, sample)
    return state


def expect_close(cost, truth, tolerance):
    for work in ((500, 0, 0), (0, 32, 32_000), (0, 1, 500), (256, 16, 8_000)):
        assert cost.step_s(*work) == pytest.approx(truth.step_s(*work), rel=tolerance), work


@pytest.mark.slow
def test_a_fit_finds_the_terms_that_made_the_steps():
    state = fitted(mixed_steps(random.Random(1), TRUE, 600))
    expect_close(state.step(), TRUE, 0.08)
    assert state.samples == 600 and state.error(0.5) < 0.06 and state.error(0.9) < 0.15


@pytest.mark.slow
def test_a_fit_is_useful_after_thirty_steps():
    expect_close(fitted(mixed_steps(random.Random(2), TRUE, 40, noise=0.02)).step(), TRUE, 0.35)


@pytest.mark.slow
def test_pauses_of_the_machine_do_not_spoil_a_fit():
    state = fitted(mixed_steps(random.Random(3), TRUE, 800, outliers=0.05))
    expect_close(state.step(), TRUE, 0.2)


@pytest.mark.slow
def test_a_lasting_change_is_followed():
    rng = random.Random(4)
    slower = StepCost(*(5 * term for term in (TRUE.base_s, TRUE.prefill_s, TRUE.decode_s, TRUE.context_s)))
    state = fitted(mixed_steps(rng, TRUE, 300))
    expect_close(fitted(mixed_steps(rng, slower, 3000), state).step(), slower, 0.2)


@pytest.mark.slow
def test_hours_of_decoding_do_not_erase_what_a_prefill_costs():
    rng = random.Random(5)
    state = fitted(mixed_steps(rng, TRUE, 300))
    for _ in range(4000):
        decodes = rng.randrange(1, 64)
        context = decodes * rng.randrange(50, 2000)
        state = fit(state, StepSample(TRUE.step_s(0, decodes, context), 0, decodes, context))
    assert state.step().prefill_s == pytest.approx(TRUE.prefill_s, rel=0.1)


def test_a_term_that_no_sample_touches_stays_at_its_prior():
    state = fitted(StepSample(0.01 + 1e-4 * n, n, 0, 0) for n in range(100, 400, 5))
    assert state.step().decode_s == PRIOR.decode_s and state.step().context_s == PRIOR.context_s
    assert state.step().prefill_s == pytest.approx(1e-4, rel=0.2)


def test_transfers_are_fitted_alike():
    rng, state = random.Random(6), start_transfer()
    for _ in range(100):
        tokens = rng.randrange(1, 4000)
        state = fit_transfer(state, TransferSample(8e-3 + 3e-6 * tokens, tokens))
    assert state.transfer().transfer_s(2000) == pytest.approx(0.014, rel=0.05)


wild = st.sampled_from([0.0, -1.0, math.inf, math.nan, 1e-12, 1e12]) | st.floats(1e-6, 10)
samples = st.builds(StepSample, wild, st.integers(0, 10_000), st.integers(0, 512), st.integers(0, 10**6))


@given(st.lists(samples, max_size=80))
@settings(max_examples=60, deadline=None)
def test_terms_stay_finite_and_never_negative_whatever_comes(history):
    state = fitted(history)
    assert all(math.isfinite(term) and term >= 0 for term in state.terms)
    assert len(state.errors) <= WINDOW and state.samples <= len(history)
    assert state.error(0.5) <= state.error(0.9)


@given(loads, loads, loads, loads, loads)
@settings(max_examples=60, deadline=None)
def test_predictions_grow_with_load(new, queued, running, context, more):
    ttft = predict_ttft(TRUE, new, queued, running, context)
    assert 0 < ttft <= predict_ttft(TRUE, new + more, queued, running, context) + 1e-9
    assert ttft <= predict_ttft(TRUE, new, queued + more, running + more, context + more) + 1e-9
    tpot = predict_tpot(TRUE, running, context, queued)
    assert 0 < tpot <= predict_tpot(TRUE, running + more, context + more, queued + more) + 1e-9


def test_long_prompts_pay_every_chunks_step():
    one = predict_ttft(TRUE, 2048, max_batched_tokens=2048)
    assert predict_ttft(TRUE, 2049, max_batched_tokens=2048) - one == pytest.approx(TRUE.base_s + TRUE.prefill_s)


def report(step, samples=100, shape="cpu", transfer=TRANSFER_PRIOR, transfers=0):
    return CostObservation(shape, step, samples, transfer, transfers)


def test_a_shapes_terms_come_from_those_who_measured_them():
    prefiller = StepCost(2e-3, 1e-4, PRIOR.decode_s, PRIOR.context_s)
    decoder = StepCost(2e-3, PRIOR.prefill_s, 3e-4, 1e-7)
    moved = TransferCost(1e-3, 1e-6)
    pooled = pool([report(prefiller, 5000), report(decoder, 100, transfer=moved, transfers=50), report(TRUE, 2, "gpu")])
    assert pooled["cpu"] == (StepCost(2e-3, 1e-4, 3e-4, 1e-7), moved)
    assert pooled["gpu"] == (PRIOR, TRANSFER_PRIOR)


def test_one_sick_worker_does_not_move_its_shape():
    sick = StepCost(1.0, 1.0, 1.0, 1.0)
    assert pool([report(TRUE), report(TRUE), report(sick)])["cpu"][0] == TRUE


def test_a_workers_own_figures_count_once_it_has_enough_of_them():
    own = report(StepCost(1e-3, PRIOR.prefill_s, 9e-4, PRIOR.context_s))
    step, transfer = settle(own, (TRUE, TRANSFER_PRIOR))
    assert step == StepCost(1e-3, TRUE.prefill_s, 9e-4, TRUE.context_s) and transfer == TRANSFER_PRIOR
    few = report(own.step, MEASURED_SAMPLES - 1)
    assert settle(few, (TRUE, TRANSFER_PRIOR)) == settle(None, (TRUE, TRANSFER_PRIOR)) == (TRUE, TRANSFER_PRIOR)
