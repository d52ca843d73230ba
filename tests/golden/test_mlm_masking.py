"""Masking, PMI, optimiser, model and metrics against the vectors of DinkyTrain and SpanBERT."""

from checks_mlm_masking import CHECKS
from harness import run_checks


def test_mlm_masking():
    run_checks("mlm_masking", CHECKS)
