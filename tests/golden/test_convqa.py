"""The re-evaluation of conversational QA against the vectors of the official code (princeton-nlp/EvalConvQA)."""

from checks_convqa import CHECKS
from harness import run_checks


def test_convqa():
    run_checks("convqa", CHECKS)
