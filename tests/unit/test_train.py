"""The backprop loop: exact resume, exact accumulation, batches that are a function of the step."""

import dataclasses

import numpy as np
import pytest
import torch

from reclaim.batches import epoch_batches
from reclaim.errors import InputError
from reclaim.train import Recipe, train

X = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > X[:, 1]).long()


class Net(torch.nn.Module):
    def __init__(self, dropout):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first, self.last = torch.nn.Linear(5, 16), torch.nn.Linear(16, 2)
        self.dropout = torch.nn.Dropout(dropout)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, x):
        return self.last(self.dropout(torch.tanh(self.first(x))))


class Interrupted(Exception):
    pass


def run(recipe, stop_after=None, dropout=0.2, **options):
    net = Net(dropout)
    take = epoch_batches(len(X), recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps, seed=3)

    def batches(step):
        if step == stop_after:
            raise Interrupted
        for part in np.array_split(take(step)[1], recipe.gradient_accumulation_steps):
            yield X[part], Y[part]

    def loss(batch):
        return torch.nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="sum"), len(batch[1])

    history = train(net, batches, loss, recipe, seed=5, **options)
    return net, history


RECIPE = Recipe(num_train_steps=40, per_device_train_batch_size=8, learning_rate=1e-2, warmup_ratio=0.1)


def test_it_learns():
    _, history = run(RECIPE)
    assert np.mean(history.loss[-5:]) < 0.7 * np.mean(history.loss[:5])
    assert history.predictions == 40 * 8 and history.forward_passes == 40


@pytest.mark.parametrize("optimizer", ["adamw", "fairseq_adam", "sgd"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, optimizer):
    recipe = Recipe(**{**vars(RECIPE), "optimizer": optimizer})
    whole, whole_history = run(recipe)
    state = tmp_path / "state.pt"
    with pytest.raises(Interrupted):
        run(recipe, stop_after=23, state_path=state, save_seconds=0, run="a")
    assert state.exists()
    resumed, history = run(recipe, state_path=state, save_seconds=0, run="a")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert history.loss == whole_history.loss
    assert not state.exists()


def test_the_state_of_another_run_is_not_resumed(tmp_path):
    state = tmp_path / "state.pt"
    with pytest.raises(Interrupted):
        run(RECIPE, stop_after=23, state_path=state, save_seconds=0, run="other data")
    whole, _ = run(RECIPE)
    anew, history = run(RECIPE, state_path=state, run="these data")
    assert len(history.loss) == 40
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), anew.parameters(), strict=True))


def test_accumulation_divides_by_all_predictions():
    """Micro-batches with 1 and 7 predictions give the gradient of the one batch of 8, not the mean of two means."""
    torch.manual_seed(0)
    weights = []
    for splits in ([8], [1, 7]):
        net = torch.nn.Linear(5, 2)
        torch.nn.init.zeros_(net.weight)
        torch.nn.init.zeros_(net.bias)

        def batches(step, splits=splits):
            return zip(X[:8].split(splits), Y[:8].split(splits), strict=True)

        def loss(batch, net=net):
            return torch.nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="sum"), len(batch[1])

        train(net, batches, loss, Recipe(num_train_steps=3, learning_rate=0.1, optimizer="sgd"), seed=0)
        weights.append(net.weight.detach())
    torch.testing.assert_close(weights[0], weights[1])


def test_the_global_stream_is_left_alone():
    net = Net(0.2)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    train(net, lambda step: [X[:8]], lambda x: (net(x).sum(), 8), RECIPE, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_batches_are_a_function_of_the_step():
    forwards = epoch_batches(50, 8, seed=1)
    backwards = epoch_batches(50, 8, seed=1)
    there = [forwards(step) for step in range(20)]
    back = [backwards(step) for step in reversed(range(20))][::-1]
    for (epoch_a, rows_a), (epoch_b, rows_b) in zip(there, back, strict=True):
        assert epoch_a == epoch_b and (rows_a == rows_b).all()
    first_epoch = np.concatenate([rows for epoch, rows in there if epoch == 0])
    assert len(set(first_epoch)) == len(first_epoch) == 48


def test_a_diverging_run_is_named():
    recipe = Recipe(num_train_steps=50, learning_rate=3e38, optimizer="sgd")
    with pytest.raises(InputError, match="training step"):
        run(recipe)


def test_unknown_keys_are_refused():
    with pytest.raises(InputError, match="recipes.x.speed"):
        Recipe.from_config({"speed": 1}, "recipes.x")


# --- Half precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.03), ("float16", 0.004)])
@pytest.mark.parametrize("parts", [1, 4])
def test_half_precision_follows_float32(precision, tolerance, parts):
    recipe = Recipe(
        num_train_steps=60,
        per_device_train_batch_size=16 // parts,
        gradient_accumulation_steps=parts,
        learning_rate=1e-2,
        max_grad_norm=1.0,
    )
    _, whole = run(recipe, dropout=0.0)
    net, half = run(dataclasses.replace(recipe, precision=precision), dropout=0.0)
    assert np.mean(half.loss[-5:]) < 0.5 * np.mean(half.loss[:5])
    assert half.loss != whole.loss, "computed in less than float32"
    np.testing.assert_allclose(half.loss, whole.loss, atol=tolerance)
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


class Overflowing:
    """A linear model whose gradient overflows float16 in updates 5 and 25 of 40, in the second of two micro-batches."""

    def __init__(self, optimizer, state):
        self.net = torch.nn.Linear(5, 2)
        with torch.no_grad():
            self.net.weight.copy_(torch.linspace(-1, 1, 10).view(2, 5))
            self.net.bias.zero_()
        self.recipe = Recipe(
            num_train_steps=40, learning_rate=1e-2, optimizer=optimizer, weight_decay=0.1, precision="float16"
        )
        self.state, self.scales, self.weights = state, {}, {}

    def batches(self, step):
        if self.state.exists():
            self.scales[step] = torch.load(self.state, weights_only=True)["scaler"]["scale"]
        self.weights[step] = self.net.weight.detach().clone()
        if step == self.stop_after:
            raise Interrupted
        yield X[:20], Y[:20]
        yield X[20:] * (1e4 if step in (5, 25) else 1), Y[20:]

    def loss(self, batch):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="sum"), len(batch[1])

    def train(self, stop_after=None):
        self.stop_after = stop_after
        train(self.net, self.batches, self.loss, self.recipe, seed=5, state_path=self.state, save_seconds=0)
        return self


@pytest.mark.parametrize("optimizer", ["adamw", "fairseq_adam", "sgd"])
def test_an_overflow_is_left_out_and_the_scale_of_the_loss_survives_a_kill(tmp_path, optimizer):
    whole = Overflowing(optimizer, tmp_path / "whole.pt").train()
    moved = {step for step in range(39) if not torch.equal(whole.weights[step], whole.weights[step + 1])}
    assert moved == set(range(39)) - {5, 25}
    assert [whole.scales[step] for step in (5, 6, 25, 26, 39)] == [128.0, 64.0, 64.0, 32.0, 32.0]

    state = tmp_path / "killed.pt"
    with pytest.raises(Interrupted):
        Overflowing(optimizer, state).train(stop_after=13)
    resumed = Overflowing(optimizer, state).train()
    assert min(resumed.weights) == 13 and resumed.scales == {step: whole.scales[step] for step in range(13, 40)}
    assert torch.equal(resumed.net.weight, whole.net.weight) and torch.equal(resumed.net.bias, whole.net.bias)


def test_gradients_that_overflow_at_any_scale_end_the_run():
    net = torch.nn.Linear(5, 2)
    recipe = Recipe(num_train_steps=100, precision="float16")
    with pytest.raises(InputError, match="training step 20: found gradients that overflow float16 at any scale"):
        train(net, lambda step: [X], lambda x: (net(x).float().sum() * 1e30, 64), recipe, seed=5)


def test_an_adapter_on_float16_weights_is_scaled_and_such_weights_are_not_trained():
    """The gradient of the adapter passes through a frozen layer that would round it to zero."""
    first, last = torch.nn.Linear(5, 16), torch.nn.Linear(16, 2).half().requires_grad_(False)
    with torch.no_grad():
        last.weight.fill_(1e-4)
    net = torch.nn.Sequential(first, last)

    def loss(x):
        return last(first(x).half()).float().sum() * 3e-4, len(x)  # 3e-8 for an activation; float16 ends at 6e-8

    before = first.weight.detach().clone()
    train(net, lambda step: [X], loss, Recipe(num_train_steps=1, optimizer="sgd", learning_rate=1e6), seed=5)
    assert not torch.equal(first.weight, before)
    last.requires_grad_(True)
    with pytest.raises(InputError, match="the weights to train: found float16; expected float32"):
        train(net, lambda step: [X], loss, Recipe(num_train_steps=1), seed=5)


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match="recipe.precision: found 'float8'; expected float32, bfloat16, float16"):
        run(Recipe(num_train_steps=1, precision="float8"))
