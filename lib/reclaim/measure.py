"""Measurements that are experiments of their own: peak memory of a step, and what a trajectory log holds (MeZO, Malladi et
al. 2023, abstract, section 2.1 and the memory figures).
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from multiprocessing.context import ForkContext, SpawnContext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reclaim.adapters import add_lora
from reclaim.errors import InputError
from reclaim.memory import peak_memory, return_freed_blocks
from reclaim.objectives import option_lm_loss
from reclaim.optim import MeZO
from reclaim.optim.trajectory import record, replay
from reclaim.seeding import derive


def run_memory(spec: dict, seed: int, *, device: torch.device | str, **_: Any) -> dict[str, list[dict]]:
    """Peak memory above the loaded model, its size, and the time of a step, by method: cost rows of one repeat.

    Each figure comes from a process of its own, because memory that an allocator keeps hides what the next step uses.
    Methods: `inference` (the loss of a batch), `mezo` (full parameters, SGD), `lora` and `backprop` (Adam). Two steps are
    taken, so that the moments of Adam are there, and the second is timed.
    """
    rows = []
    for method in spec["methods"]:
        variant = {"model": "opt", "method": method, "parameters": "lora" if method == "lora" else "full"}
        variant |= {"batch_size": spec["batch_size"], "sequence_length": spec["sequence_length"]}
        for measure, value, unit in _in_a_process(_measure_memory, spec, method, seed, str(device)):
            rows.append({"variant": variant, "measure": measure, "value": float(value), "unit": unit})
    return {"costs": rows}


def _measure_memory(spec: dict, method: str, seed: int, device: str) -> list[tuple[str, float, str]]:
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(derive(seed, "memory"))  # a process of its own: its global stream is nobody else's
    model = OPTForCausalLM(OPTConfig(**spec["config"])).to(device)
    vocabulary = model.config.vocab_size
    input_ids = torch.randint(4, vocabulary, (spec["batch_size"], spec["sequence_length"]), device=device)
    batch = (input_ids, torch.ones_like(input_ids), torch.full((len(input_ids),), spec["sequence_length"] - 1))
    step = _STEPS[method](model, batch)
    with torch.no_grad():  # what is loaded on first use is not the method's
        option_lm_loss(model.eval(), input_ids[:1, :4], batch[1][:1, :4], torch.tensor([3]))
    with peak_memory(device) as used:
        for _ in range(2):
            started = _now(device)
            step()
            seconds = _now(device) - started
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return [("peak_bytes", used.peak_bytes, "bytes"), ("model_bytes", size, "bytes"), ("step_s", seconds, "s")]


def _now(device: str) -> float:
    """The time (s), once a GPU has done what it was asked for."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _inference(model, batch):
    @torch.inference_mode()
    def step():
        option_lm_loss(model.eval(), *batch)

    return step


def _mezo(model, batch):
    optimizer = MeZO(model, learning_rate=1e-6, seed=0)
    return lambda: optimizer.step(lambda: option_lm_loss(model, *batch))


def _backprop(model, batch):
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-5)

    def step():
        option_lm_loss(model.train(), *batch).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _lora(model, batch):
    return _backprop(add_lora(model), batch)


_STEPS = {"inference": _inference, "mezo": _mezo, "lora": _lora, "backprop": _backprop}


def run_trajectory(spec: dict, seed: int, **_: Any) -> dict[str, list[dict]]:
    """Size of the log of a full-length run and the largest difference of the weights it rebuilds: metric rows.

    The run is of `num_steps` steps on a quadratic in `num_parameters` weights, which exercises the log and not a model; the
    replay starts from the base weights in a process of its own, as it would elsewhere.
    """
    trained, base = _quadratic(spec["num_parameters"], seed), _quadratic(spec["num_parameters"], seed)
    optimizer = MeZO(trained, learning_rate=1e-4, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.mezo"
        with record(optimizer, path):
            for _step in range(spec["num_steps"]):
                optimizer.step(lambda: trained.weight.square().sum())
        rebuilt, size = _in_a_process(_replayed, path, base), path.stat().st_size
    moved = float((trained.weight.detach() - base.weight.detach()).abs().max())
    rows = [
        ("log_bytes", size, "bytes"),
        ("max_abs_difference", float(abs(rebuilt - trained.weight.detach().numpy()).max()), "1"),
        ("max_abs_change", moved, "1"),
    ]
    variant = {"num_steps": spec["num_steps"], "num_parameters": spec["num_parameters"]}
    columns = ("metric", "value", "unit")
    return {"metrics": [{"variant": variant, "n": 1, **dict(zip(columns, row, strict=True))} for row in rows]}


def _quadratic(size: int, seed: int) -> torch.nn.Linear:
    module = torch.nn.Linear(size, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.randn(1, size, generator=torch.Generator().manual_seed(seed)))
    return module


def _replayed(path: Path, base: torch.nn.Linear) -> np.ndarray:
    replay(path, base)
    return base.weight.detach().numpy()


def _in_a_process(function, *arguments):
    """The value of a function run in a process of its own; raises `InputError` if it dies."""
    # Spawned where CUDA is in use, which does not survive a fork.
    context: SpawnContext | ForkContext = (
        multiprocessing.get_context("spawn") if torch.cuda.is_initialized() else multiprocessing.get_context("fork")
    )
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise InputError(function.__name__, f"exit status {process.exitcode}", "a measured value") from None
    finally:
        process.join()


def _send(sender, function, arguments) -> None:
    torch.set_num_threads(1)
    return_freed_blocks()
    sender.send(function(*arguments))
