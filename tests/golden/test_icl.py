"""The in-context study against the vectors of the official code (princeton-nlp/WhatICLLearns)."""

from checks_icl import CHECKS
from harness import run_checks


def test_icl():
    run_checks("icl", CHECKS)
