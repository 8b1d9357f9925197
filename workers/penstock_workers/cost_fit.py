"""What this worker's engine costs, fitted online from its own steps and pulls.

Promise: bounded work however fast the engine steps: at most one sample per `EVERY_S`, and per `LATER_EVERY_S` once the
figures have settled.
"""

from penstock_policy.cost.fit import StepSample, TransferSample, fit, fit_transfer, start_step, start_transfer
from penstock_proto.v1.fleet_pb2 import CostReport
from penstock_workers.engine.protocol import StepStats, TransferStats
from penstock_workers.pool.hang import Measured

EVERY_S = 0.02
LATER_EVERY_S = 0.1
_SETTLED = 512  # samples


class CostFit:
    def __init__(self) -> None:
        self._step = start_step()
        self._transfer = start_transfer()
        self._next = 0.0

    def step(self, stats: StepStats, now: float) -> None:
        if now < self._next or not stats.duration_s:
            return
        self._next = now + (EVERY_S if self._step.samples < _SETTLED else LATER_EVERY_S)
        self._step = fit(self._step, StepSample(stats.duration_s, stats.prefill_tokens, stats.decodes, stats.context_tokens))

    def transfer(self, stats: TransferStats) -> None:
        if not stats.failed:
            self._transfer = fit_transfer(self._transfer, TransferSample(stats.duration_s, stats.tokens))

    def known(self) -> Measured:
        return Measured(self._step.step(), self._step.samples)

    def report(self) -> CostReport | None:
        """None before the first sample."""
        if not self._step.samples and not self._transfer.samples:
            return None
        step, transfer = self._step.step(), self._transfer.transfer()
        return CostReport(
            base_s=step.base_s,
            prefill_s=step.prefill_s,
            decode_s=step.decode_s,
            context_s=step.context_s,
            samples=self._step.samples,
            error_p50=self._step.error(0.5),
            error_p90=self._step.error(0.9),
            transfer_base_s=transfer.base_s,
            transfer_token_s=transfer.token_s,
            transfers=self._transfer.samples,
        )
