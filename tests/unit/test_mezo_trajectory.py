"""The trajectory log: size, exact replay, refusals, and resuming after a kill."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from reclaim.errors import InputError
from reclaim.optim import MeZO
from reclaim.optim.trajectory import read_log, record, replay, weights_digest


def model(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = nn.Sequential(OrderedDict(embed=nn.Embedding(11, 8), norm=nn.LayerNorm(8), lm_head=nn.Linear(8, 5)))
    with torch.no_grad():
        for p in layers.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return layers.to(dtype)


def batch_loss(module, step):
    ids = torch.randint(0, 11, (6,), generator=torch.Generator().manual_seed(step))
    return lambda: nn.functional.cross_entropy(module(ids).double(), ids % 5)


def run(module, path, steps, learning_rate=1e-2, **options):
    optimizer = MeZO(module, learning_rate, seed=5, **options)
    with record(optimizer, path):
        while optimizer.num_steps < steps:
            optimizer.step(batch_loss(module, optimizer.num_steps))
    return optimizer


def digest(module):
    return weights_digest(module.state_dict().items())


RUNS = {
    "sgd": {},
    "per tensor": {"rng": "per_tensor"},
    "weight decay": {"weight_decay": 0.3, "decay_filter": "all"},
    "momentum": {"optimizer": "momentum"},
    "momentum, recomputed": {"optimizer": "momentum", "momentum_horizon": 4},
    "adam": {"optimizer": "adam", "weight_decay": 0.1},
    "3 directions": {"num_directions": 3},
    "growing": {"num_directions": 3, "direction_schedule": "linear", "num_train_steps": 12},
    "blocks": {"block_scales": {"embed": 2.0, "lm_head": 0.5}},
    "not in place": {"in_place": False},
    "bfloat16": {"dtype": torch.bfloat16},
    "bfloat16, to nearest": {"dtype": torch.bfloat16, "rounding": "nearest", "learning_rate": 0.1},
    "float16, per tensor": {"dtype": torch.float16, "rng": "per_tensor", "optimizer": "adam"},
    "float64": {"dtype": torch.float64, "num_directions": 2, "direction_reduction": "sum"},
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS.keys())
def test_replay_gives_the_trained_weights_bit_for_bit(tmp_path, options):
    options = dict(options)
    dtype = options.pop("dtype", torch.float32)
    base = model(dtype)
    trained = model(dtype)
    run(trained, tmp_path / "log", 12, **options)
    assert digest(trained) != digest(base)
    optimizer = replay(tmp_path / "log", base)
    assert digest(base) == digest(trained)
    assert optimizer.num_steps == 12


@pytest.mark.parametrize("options", [RUNS["sgd"], RUNS["adam"], RUNS["growing"], RUNS["momentum, recomputed"]])
def test_a_run_cut_at_any_byte_resumes_to_the_same_bits(tmp_path, options):
    whole = model()
    run(whole, tmp_path / "whole", 6, **options)
    data = (tmp_path / "whole").read_bytes()
    start = read_log(tmp_path / "whole").body_at
    for cut in range(start, len(data) + 1):
        path = tmp_path / f"cut{cut}"
        path.write_bytes(data[:8] + bytes(40) + data[48:cut])  # unsealed, as a killed run leaves it
        resumed = model()
        run(resumed, path, 6, **options)
        assert digest(resumed) == digest(whole)
        assert path.read_bytes() == data


TRAIN = textwrap.dedent(
    """
    import sys, time
    sys.path.insert(0, {tests!r})
    from test_mezo_trajectory import *
    torch.set_num_threads(1)
    trained = model()
    optimizer = MeZO(trained, 1e-2, seed=5, optimizer="adam", num_directions=2)
    with record(optimizer, sys.argv[1]):
        while optimizer.num_steps < 40:
            optimizer.step(batch_loss(trained, optimizer.num_steps))
            while optimizer.num_steps == int(sys.argv[2]):
                time.sleep(1)
    print(digest(trained))
    """
)


def start_training(path, stop_after=0):
    """Train 40 steps; after so many the process waits for its end."""
    script = TRAIN.format(tests=os.path.dirname(__file__))
    command = [sys.executable, "-c", script, str(path), str(stop_after)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_process_resumes_to_the_same_bits(tmp_path):
    path = tmp_path / "log"
    process = start_training(path, stop_after=11)
    while process.poll() is None and not (path.exists() and len(read_log(path).steps) >= 7):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = read_log(path)
    assert 7 <= len(done.steps) <= 11 and done.sealed is None
    output, _ = start_training(path).communicate(timeout=300)
    whole = model()
    run(whole, tmp_path / "whole", 40, optimizer="adam", num_directions=2)
    assert output.strip() == digest(whole)
    rebuilt = model()
    replay(path, rebuilt)
    assert digest(rebuilt) == digest(whole)


def test_20000_steps_fit_in_100000_bytes_even_of_a_large_model(tmp_path):
    named = []
    for layer in range(64):  # OPT-66B has 1,028 tensors
        for part in ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"):
            named += [(f"model.decoder.layers.{layer}.{part}.{kind}", torch.zeros(1)) for kind in ("weight", "bias")]
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            named += [(f"model.decoder.layers.{layer}.{norm}.{kind}", torch.zeros(1)) for kind in ("weight", "bias")]
    optimizer = MeZO([(name, nn.Parameter(p)) for name, p in named], 1e-6)
    with record(optimizer, tmp_path / "log"):
        for value in np.random.default_rng(0).normal(size=20_000):
            optimizer.recorder([value])
        optimizer.num_steps = 20_000
    assert (tmp_path / "log").stat().st_size <= 100_000
    log = read_log(tmp_path / "log")
    assert len(log.steps) == 20_000 and log.sealed[0] == 20_000


# ---------------------------------------------------------------------- refusals


def with_frozen(seed):
    module = model(seed=seed)
    module[0].weight.requires_grad_(False)
    return module


def swapped(module):
    return list(module.named_parameters())[::-1]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (lambda: model(seed=1), "base weights"),
        (lambda: swapped(model()), "parameter order"),
        (lambda: model(torch.float64), "tensors"),
        (lambda: list(model().named_parameters())[1:], "tensors"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_left_alone(tmp_path, module, name):
    run(model(), tmp_path / "log", 3)
    module = module()
    tensors = [p for _, p in module] if isinstance(module, list) else list(module.parameters())
    before = [p.detach().clone() for p in tensors]
    with pytest.raises(InputError, match=name):
        replay(tmp_path / "log", module)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_a_wrong_frozen_base_is_refused(tmp_path):
    run(with_frozen(0), tmp_path / "log", 3)
    replay(tmp_path / "log", with_frozen(0))
    other = with_frozen(0)
    other[0].weight.data[0, 0] += 1
    with pytest.raises(InputError, match="frozen weights"):
        replay(tmp_path / "log", other)


def test_pairs_of_names_and_parameters_may_stand_for_a_module_with_frozen_weights(tmp_path):
    trained, base = with_frozen(0), with_frozen(0)
    run(trained, tmp_path / "log", 3)
    replay(tmp_path / "log", list(base.named_parameters()))
    assert digest(base) == digest(trained)


def test_the_weights_of_an_earlier_step_can_be_rebuilt(tmp_path):
    early, base = model(), model()
    run(model(), tmp_path / "long", 8, optimizer="adam")
    run(early, tmp_path / "short", 3, optimizer="adam")
    assert replay(tmp_path / "long", base, num_steps=3).num_steps == 3
    assert digest(base) == digest(early)
    with pytest.raises(InputError, match="num_steps"):
        replay(tmp_path / "long", model(), num_steps=9)


def test_numbers_of_numpy_can_be_recorded(tmp_path):
    trained, base = model(), model()
    optimizer = MeZO(trained, np.float32(0.5), np.float32(0.125), seed=np.int64(3), num_directions=np.int32(2))
    with record(optimizer, tmp_path / "log"):
        optimizer.step(batch_loss(trained, 0))
    replay(tmp_path / "log", base)
    assert digest(base) == digest(trained)


def test_a_log_of_another_device_type_is_refused(tmp_path):
    run(model(), tmp_path / "log", 3)
    edit_header(tmp_path / "log", lambda header: header.update(device=["cuda"]))
    with pytest.raises(InputError, match="device type"):
        replay(tmp_path / "log", model())


def test_another_torch_version_is_warned_about(tmp_path):
    run(model(), tmp_path / "log", 3)
    edit_header(tmp_path / "log", lambda header: header.update(torch="1.0"))
    with pytest.warns(UserWarning, match="torch 1.0"):
        replay(tmp_path / "log", model())


def test_per_tensor_logs_do_not_care_about_the_order(tmp_path):
    trained, base = model(), model()
    run(trained, tmp_path / "log", 3, rng="per_tensor")
    replay(tmp_path / "log", swapped(base))
    assert digest(base) == digest(trained)


def test_a_changed_value_is_found_by_the_seal(tmp_path):
    path = tmp_path / "log"
    run(model(), path, 3)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="rebuilt weights"):
        replay(path, model())


def test_a_function_as_learning_rate_must_be_given_again(tmp_path):
    trained, base = model(), model()

    def rate(step):
        return 0.02 / (1 + step)

    run(trained, tmp_path / "log", 4, learning_rate=rate)
    with pytest.raises(InputError, match="learning rate"):
        replay(tmp_path / "log", base)
    with pytest.raises(InputError, match="rebuilt weights"):
        replay(tmp_path / "log", model(), learning_rate=lambda step: 0.02)
    replay(tmp_path / "log", base, learning_rate=rate)
    assert digest(base) == digest(trained)


def test_resuming_with_other_arguments_is_refused(tmp_path):
    run(model(), tmp_path / "log", 2)
    for options, name in (
        ({"eps": 0.1}, "eps"),
        ({"learning_rate": 0.5}, "learning_rate"),
        ({"rng": "per_tensor"}, "rng"),
    ):
        with pytest.raises(InputError, match=name):
            run(model(), tmp_path / "log", 4, **options)
    with pytest.raises(InputError, match="base weights"):
        run(model(seed=3), tmp_path / "log", 4)


def test_a_run_may_go_on_behind_a_sealed_log(tmp_path):
    long, short = model(), model()
    run(long, tmp_path / "long", 8)
    run(short, tmp_path / "short", 3)
    again = model()
    run(again, tmp_path / "short", 8)
    assert digest(again) == digest(long)
    assert (tmp_path / "short").read_bytes() == (tmp_path / "long").read_bytes()


def test_after_a_failed_step_a_logged_run_has_to_resume(tmp_path):
    module = model()
    optimizer = MeZO(module, 1e-2, seed=5)
    with pytest.raises(ZeroDivisionError), record(optimizer, tmp_path / "log"):
        optimizer.step(batch_loss(module, 0))
        with pytest.raises(InputError, match="a loss of nan"):
            optimizer.step(lambda: float("nan"))
        with pytest.raises(InputError, match="resume from it"):
            optimizer.step(batch_loss(module, 1))
        raise ZeroDivisionError
    assert read_log(tmp_path / "log").sealed is None
    resumed, whole = model(), model()
    run(resumed, tmp_path / "log", 4)
    run(whole, tmp_path / "whole", 4)
    assert digest(resumed) == digest(whole)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 some archive", b"RCLMEZO1" + bytes(60)])
def test_other_files_are_refused(tmp_path, data):
    (tmp_path / "log").write_bytes(data)
    with pytest.raises(InputError, match="log"):
        read_log(tmp_path / "log")
    with pytest.raises(InputError):
        read_log(tmp_path / "absent")


def test_a_used_optimizer_or_explicit_seeds_cannot_be_recorded(tmp_path):
    module = model()
    used = MeZO(module, 1e-2)
    used.step(batch_loss(module, 0))
    for optimizer in (used, MeZO(module, 1e-2, direction_seeds=[1, 2])):
        with pytest.raises(InputError), record(optimizer, tmp_path / "log"):
            pass
    assert not (tmp_path / "log").exists()


def edit_header(path, change):
    import json
    import zlib

    data = path.read_bytes()
    size = int.from_bytes(data[48:52], "little")
    header = json.loads(zlib.decompress(data[52 : 52 + size]))
    change(header)
    packed = zlib.compress(json.dumps(header).encode())
    path.write_bytes(data[:48] + len(packed).to_bytes(4, "little") + packed + data[52 + size :])
