"""Damaged inputs of every kind, by seed; `make fuzz` runs the same for longer."""

from fuzz import run


def test_no_damaged_input_ends_in_a_traceback_a_crash_or_a_wait():
    num, faults = run(seconds=14)
    assert not faults, "; ".join(f"{kind}:{seed}: {what}" for (kind, seed), what in faults.items())
    assert min(num.values()) >= 10, num  # with five processes a core, still 35
