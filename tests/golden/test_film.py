"""FILM against the vectors of the official code (Princeton-SysML/FILM) and of this project's cross-paper questions."""

import checks_film
import checks_film_crosspaper
from harness import run_checks


def test_film():
    run_checks("film", [*checks_film.CHECKS, *checks_film_crosspaper.CHECKS])
