"""ALCE against the vectors of the official code (princeton-nlp/ALCE)."""

import checks_alce_metrics
import checks_alce_prompts
from harness import run_checks


def test_alce():
    run_checks("alce", [*checks_alce_metrics.CHECKS, *checks_alce_prompts.CHECKS])
