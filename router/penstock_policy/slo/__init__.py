"""Service-level objectives of answers."""

from penstock_policy.slo.attainment import Attained, Tally, Targets, attained, tpot

__all__ = ["Attained", "Tally", "Targets", "attained", "tpot"]
