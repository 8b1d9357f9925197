"""Where the tests of legs place them."""

from penstock_policy.pick.decision import Placement, Reason

LEASE, MARGIN = 12.0, 1.0  # seconds
WORKERS = (1, 2, 3, 4)


def placement(slot, prefill_slot=None, hold=10, prefill_hold=11):
    kind = "colocated" if prefill_slot is None else "disaggregated"
    held = 0 if prefill_slot is None else prefill_hold
    return Placement(kind, slot, prefill_slot, 0.0, 0.0, Reason.ONLY, 1, hold, held)
