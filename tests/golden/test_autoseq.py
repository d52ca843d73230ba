"""AutoSeq against the vectors of the official code (thunlp/Seq2Seq-Prompt)."""

from checks_autoseq import CHECKS
from harness import run_checks


def test_autoseq():
    run_checks("autoseq", CHECKS)
