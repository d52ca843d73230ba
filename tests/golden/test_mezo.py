"""MeZO against the vectors of the official code (princeton-nlp/MeZO)."""

from checks_mezo_optimizer import CHECKS as OPTIMIZER
from checks_mezo_prompting import CHECKS as PROMPTING
from harness import run_checks


def test_mezo():
    run_checks("mezo", [*OPTIMIZER, *PROMPTING])
