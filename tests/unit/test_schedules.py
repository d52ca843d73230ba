"""Learning-rate schedules."""

import pytest
import torch

from reclaim.errors import InputError
from reclaim.schedules import schedule


def test_linear_warms_up_and_ends_at_zero():
    rate = schedule("linear", 2e-3, 100, 10)
    rates = [rate(step) for step in range(101)]
    assert rates[0] == rates[1] == pytest.approx(2e-4), "the first two updates share a rate"
    assert rates[10] == max(rates) == 2e-3
    assert rates[55] == pytest.approx(1e-3)
    assert rates[99] == pytest.approx(2e-3 / 90) and rates[100] == 0
    assert all(rate > 0 for rate in rates[:100]), "no update is wasted"


def test_without_warm_up_the_first_update_has_the_peak():
    assert schedule("linear", 1.0, 10)(0) == 1.0
    assert schedule("linear", 1.0, 10)(5) == 0.5


def test_polynomial_and_constant():
    rate = schedule("polynomial", 1.0, 10, power=2.0, end_learning_rate=0.2)
    assert rate(5) == pytest.approx(0.2 + 0.8 * 0.25) and rate(30) == 0.2
    constant = schedule("constant", 0.5, 10, 4)
    assert [constant(step) for step in (0, 1, 2, 4, 9)] == [0.125, 0.125, 0.25, 0.5, 0.5]
    assert schedule("constant", 0.5, 10)(0) == 0.5


def test_a_cosine_in_steps_of_an_epoch():
    """As torch's CosineAnnealingLR stepped once an epoch (UNeXt); with a warm-up, half a cosine over the rest."""
    rate = schedule("cosine", 1e-4, 30, end_learning_rate=1e-5, interval=3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    torch_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=1e-5)
    for epoch in range(10):
        for step in range(3 * epoch, 3 * epoch + 3):
            assert rate(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        torch_schedule.step()
    warm = schedule("cosine", 1.0, 10, 2)
    assert [warm(step) for step in (0, 1, 2, 6, 10)] == pytest.approx([0.5, 0.5, 1.0, 0.5, 0.0])


def test_a_warm_up_as_long_as_the_run():
    rate = schedule("linear", 1.0, 4, 4)
    assert [rate(step) for step in range(5)] == [0.25, 0.25, 0.5, 0.75, 1.0] and rate(5) == 0


@pytest.mark.parametrize(
    "arguments", [("step", 1.0, 10), ("linear", 1.0, 0), ("linear", 1.0, 10, 11), ("linear", 1.0, 10, -1)]
)
def test_bad_settings_are_refused(arguments):
    with pytest.raises(InputError, match="schedule"):
        schedule(*arguments)
