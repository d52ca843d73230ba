"""STM-UNet and UNeXt against the vectors of UNeXt's official code and of the project's reference."""

from checks_stm_unet import CHECKS
from harness import run_checks


def test_stm_unet():
    run_checks("stm_unet", CHECKS)
