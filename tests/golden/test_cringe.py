"""The CRINGE loss, its baselines and metrics against the vectors of the official code (ParlAI)."""

from checks_cringe import CHECKS
from harness import run_checks


def test_cringe():
    run_checks("cringe", CHECKS)
