"""Transformer-DR against scikit-learn, scikit-image and the reference model of this project (there is no official code)."""

import pytest

from checks_transformer_dr import CHECKS, data_folder
from harness import run_checks


def test_transformer_dr():
    run_checks("transformer_dr", CHECKS)


@pytest.mark.parametrize("name", ["mnist", "orl_faces"])
def test_images_of_the_vectors_are_here(name):
    """Shows among the skipped tests which vectors the one above could not check."""
    if data_folder(name) is None:
        pytest.skip(f"RECLAIM_DATA has no folder {name}: its vectors were not checked")
