"""Checks of the MeZO vectors of steps, updates, adapters and objectives.

Every run is compared twice: as a free run (losses, projected gradients, weights), and as a replay of the vectors' own
seeds and projected gradients, which must come closer. Tolerances are the vectors' own: see their README.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import reclaim.torchvision_shim  # noqa: F401
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from harness import companion
from reclaim.adapters import add_lora, add_prefix
from reclaim.objectives import (
    label_word_logits,
    minus_accuracy,
    minus_f1,
    option_classification_loss,
    option_lm_loss,
    prompt_mlm_loss,
)
from reclaim.optim import MeZO
from reclaim.optim.blocks import measure_block_scales
from reclaim.optim.slots import Slot
from reclaim.optim.streams import Scratch, SequentialDirection, legacy_numpy_seeds

Named = list[tuple[str, nn.Parameter]]

LOSS, GRAD, FREE, REPLAY, FINGERPRINT, DOUBLE = 2e-5, 2e-3, 1e-5, 2e-6, 1e-4, 1e-9
DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


def close(found: float, expected: float, tolerance: float, what: str) -> None:
    assert abs(found - expected) <= tolerance, f"{what}: {found} is not {expected} within {tolerance}"


def tensors_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    difference = (found.detach().double() - expected.double()).abs().max().item()
    assert difference <= tolerance, f"{what}: differs by {difference}, more than {tolerance}"


# ---------------------------------------------------------------------- models


def opt_model(folder: Path, dtype: torch.dtype = torch.float32) -> transformers.OPTForCausalLM:
    model = transformers.OPTForCausalLM(transformers.OPTConfig(**json.loads((folder / "opt_config.json").read_text())))
    model.load_state_dict(load_file(folder / "opt_init.safetensors"), strict=False)
    model.tie_weights()
    return model.to(dtype).eval()


def roberta_model(folder: Path, dtype: torch.dtype = torch.float32) -> transformers.RobertaForMaskedLM:
    model = transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(**json.loads((folder / "roberta_config.json").read_text()))
    )
    model.load_state_dict(load_file(folder / "roberta_init.safetensors"), strict=False)
    model.tie_weights()
    return model.to(dtype).eval()


class PromptRoberta(nn.Module):
    """The official model: a pooler and a classifier that nothing reads, and a decoder that is not tied."""

    def __init__(self, config: transformers.RobertaConfig, num_labels: int):
        super().__init__()
        self.roberta = transformers.RobertaModel(config)
        self.lm_head = transformers.models.roberta.modeling_roberta.RobertaLMHead(config)
        self.lm_head.decoder.bias = self.lm_head.bias
        self.classifier = nn.Linear(config.hidden_size, num_labels)

    @property
    def base_model(self) -> nn.Module:
        return self.roberta


def prompt_model(folder: Path, num_labels: int, dtype: torch.dtype = torch.float32) -> PromptRoberta:
    config = transformers.RobertaConfig(**json.loads((folder / "prompt_roberta_config.json").read_text()))
    model = PromptRoberta(config, num_labels)
    state = load_file(folder / f"prompt_roberta_{num_labels}cls_init.safetensors")
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.decoder.bias"} and not unexpected, (missing, unexpected)
    return model.to(dtype).eval()


def ordered(model: nn.Module, param_order: Sequence[tuple[str, list[int]]], rename=lambda name: name) -> Named:
    """The model's trainable parameters in the order of the vectors, under their names."""
    ours = {rename(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(ours) == {name for name, _ in param_order}, set(ours) ^ {name for name, _ in param_order}
    for name, shape in param_order:
        assert list(ours[name].shape) == shape, f"{name}: {list(ours[name].shape)} is not {shape}"
    return [(name, ours[name]) for name, _ in param_order]


def batch_tensors(batch: dict) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(value) for key, value in batch.items()}


# ---------------------------------------------------------------------- weights


def check_weights(named: Named, path: Path, case: dict, step: int | str, tolerance: float, double: bool) -> int:
    """Compare with the step's tensors, if there are any, and with its fingerprints, if there are any."""
    count = 0
    expected = path.with_name(f"{path.stem}.step{step}.safetensors")
    if expected.exists():
        tensors = load_file(expected)
        assert set(tensors) == {name for name, _ in named}, f"{expected.name}: other tensors"
        for name, parameter in named:
            tensors_close(parameter, tensors[name], tolerance, f"step {step}, {name}")
        count += 1
    prints = case["fingerprints"].get(str(step))
    for name, parameter in named if prints else ():
        values, wanted, label = parameter.detach().double(), prints[name], f"step {step}, {name}"
        assert list(values.shape) == wanted["shape"], label
        wide = tolerance if double else FINGERPRINT
        close(values.sum().item(), wanted["sum"], wide, f"{label}: sum")
        close(values.norm().item(), wanted["l2"], wide, f"{label}: l2")
        close(values.flatten()[0].item(), wanted["first"], tolerance, f"{label}: first")
        close(values.flatten()[-1].item(), wanted["last"], tolerance, f"{label}: last")
    return count + bool(prints)


# ---------------------------------------------------------------------- large_models


def check_run(
    path: Path,
    case: dict,
    build: Callable[[], Named],
    objective: Callable[[dict], Callable[[], torch.Tensor | float]],
    robust_steps: int | None = None,
) -> int:
    """A logged run of the `large_models` step: free, then replayed. `objective(batch)` gives the closure of a batch,
    on the model that `build` made last. With `robust_steps`, only those are compared in the free run."""
    named = build()
    double = named[0][1].dtype == torch.float64
    loss_at, grad_at, free_at, replay_at = (DOUBLE,) * 4 if double else (LOSS, GRAD, FREE, REPLAY)
    arguments = {"eps": case["zo_eps"], "weight_decay": case.get("weight_decay", 0.0)}
    seeds = legacy_numpy_seeds(case["np_seed"])
    optimizer = MeZO(named, case["learning_rate"], direction_seeds=seeds, **arguments)
    batches = itertools.cycle(case.get("batches") or [case])
    count = 0
    for entry, batch in zip(case["log"][:robust_steps], batches, strict=False):
        result = optimizer.step(objective(batch))
        label = f"step {entry['step']}"
        assert result.seeds == (entry["seed"],), f"{label}: seed {result.seeds}"
        close(result.losses_plus[0], entry["loss_plus"], loss_at, f"{label}: L+")
        close(result.losses_minus[0], entry["loss_minus"], loss_at, f"{label}: L-")
        close(result.projected_grad, entry["projected_grad"], grad_at, f"{label}: projected_grad")
        close(result.learning_rate, entry["lr"], 1e-12, f"{label}: lr")
        count += 1 + check_weights(named, path, case, entry["step"], free_at, double)

    named = build()
    replayed = MeZO(named, case["learning_rate"], direction_seeds=[e["seed"] for e in case["log"]], **arguments)
    for entry in case["log"]:
        replayed.replay([entry["projected_grad"]])
        count += check_weights(named, path, case, entry["step"], replay_at, double)
    return count


def option_objective(model: nn.Module, batch: dict) -> Callable[[], torch.Tensor]:
    tensors = batch_tensors(batch)
    inputs = tensors["input_ids"], tensors["attention_mask"], tensors["option_len"]
    if "num_options" not in batch:
        return lambda: option_lm_loss(model, *inputs)
    counts, labels, row = [], [], 0
    while row < len(batch["num_options"]):  # the vectors repeat both for each of an example's rows
        counts.append(batch["num_options"][row])
        labels.append(batch["labels"][row])
        row += counts[-1]
    return lambda: option_classification_loss(model, *inputs, counts, torch.tensor(labels))


def check_opt(path: Path) -> int:
    case = json.loads(path.read_text())
    dtype = torch.float64 if "fp64" in case["case"] else torch.float32
    models = []

    def build() -> Named:
        models.append(opt_model(path.parent, dtype))
        return ordered(models[-1], case["param_order"])

    return check_run(path, case, build, lambda batch: option_objective(models[-1], batch))


def check_roberta(path: Path) -> int:
    case = json.loads(path.read_text())
    models = []

    def build() -> Named:
        models.append(roberta_model(path.parent))
        return ordered(models[-1], case["param_order"])

    return check_run(path, case, build, lambda batch: lambda: models[-1](**batch_tensors(batch)).loss)


def without_peft(name: str) -> str:
    return name.removesuffix(".default.weight")


def load_adapter(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[without_peft(name)])


def lora_model(folder: Path, tensors: dict[str, torch.Tensor]) -> nn.Module:
    rank = next(len(tensor) for name, tensor in tensors.items() if name.endswith("lora_A"))
    model = add_lora(opt_model(folder), r=rank).eval()
    load_adapter(model, tensors)
    return model


def check_lora(path: Path) -> int:
    case = json.loads(path.read_text())
    models = []

    def build() -> Named:
        models.append(lora_model(path.parent, load_file(path.parent / "lora_init.safetensors")))
        names = [without_peft(name) for name, p in models[-1].named_parameters() if p.requires_grad]
        assert names == [name for name, _ in case["param_order"]], "the order of the LoRA tensors"
        return ordered(models[-1], case["param_order"], without_peft)

    return check_run(path, case, build, lambda batch: option_objective(models[-1], batch))


def check_logits(model: nn.Module, tensors: dict[str, torch.Tensor], tolerance: float) -> int:
    with torch.no_grad():
        logits = model(input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"]).logits
    real = tensors["attention_mask"].bool()
    tensors_close(logits[real], tensors["logits"][real], tolerance, "logits")
    return len(real)


def check_lora_forward(path: Path) -> int:
    tensors = load_file(path)
    return check_logits(lora_model(path.parent, tensors), tensors, FREE)


def check_prefix_init(path: Path) -> int:
    tensors = load_file(path)
    count = 0
    for tokens in tensors["init_tokens"]:
        model = add_prefix(opt_model(path.parent), init_tokens=tokens)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                tensors_close(parameter, tensors[name], FREE, name)
                count += 1
        count += check_logits(model, tensors, FREE)
    return count


def check_prefix(path: Path) -> int:
    case = json.loads(path.read_text())
    tokens = load_file(path.parent / "prefix_init.safetensors")["init_tokens"]
    models = []

    def build() -> Named:
        models.append(add_prefix(opt_model(path.parent), init_tokens=tokens))
        return ordered(models[-1], case["param_order"])

    return check_run(path, case, build, lambda batch: option_objective(models[-1], batch))


def greedy_texts(model: nn.Module, input_ids: list[list[int]]) -> list[str]:
    ids = torch.tensor(input_ids)
    output = model.generate(
        input_ids=ids,
        attention_mask=(ids != 1).long(),
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=[3, 2],
        pad_token_id=1,
    )
    return [" ".join(f"w{token}" for token in row if token > 3) for row in output[:, ids.shape[1] :].tolist()]


def check_nondiff(path: Path) -> int:
    case = json.loads(path.read_text())
    models = []

    def build() -> Named:
        models.append(opt_model(path.parent))
        names = [name for name in next(iter(case["fingerprints"].values()))]
        return ordered(models[-1], [(name, list(dict(models[-1].named_parameters())[name].shape)) for name in names])

    build()
    assert greedy_texts(models[-1], case["input_ids"]) == case["unperturbed_texts"]

    def objective(batch: dict) -> Callable[[], float]:
        return lambda: minus_f1(lambda: greedy_texts(models[-1], batch["input_ids"]), batch["gold"])

    return 1 + check_run(path, case, build, objective, robust_steps=3)


def check_drift(path: Path) -> int:
    """The official step drifts in half precision at learning rate 0; ours changes no weight."""
    case = json.loads(path.read_text())
    assert all(drift["rms"] > 0 for drift in case["drift"].values())
    model = opt_model(path.parent, {"bf16": torch.bfloat16, "fp16": torch.float16}[case["dtype"]])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = MeZO(model, 0.0, direction_seeds=[entry["seed"] for entry in case["log"]])
    ids = torch.randint(4, model.config.vocab_size, (4, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    grads = [optimizer.step(lambda: option_lm_loss(model, ids, mask, [2, 2, 3, 3])).projected_grad for _ in case["log"]]
    assert len(set(grads)) > len(grads) / 2, "the loss is too coarse to tell directions apart"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} drifts"
    return len(case["log"])


def check_stream(path: Path) -> int:
    case = json.loads(path.read_text())
    for stream in case["streams"]:
        dtype = DTYPES[stream["dtype"]]
        slots = [Slot(f"t{i}", torch.empty(shape, dtype=dtype)) for i, shape in enumerate(case["shapes"])]
        direction = SequentialDirection(stream["seed"], slots, Scratch())
        for index, values in enumerate(stream["values"]):
            drawn = torch.cat([z.to(dtype) for _, _, z in direction.chunks(index)])
            expected = torch.tensor(values, dtype=torch.float64).to(dtype).flatten()
            assert torch.equal(drawn, expected), f"seed {stream['seed']}, {dtype}, shape {case['shapes'][index]}"
    return len(case["streams"])


# ---------------------------------------------------------------------- medium_models


def decayed_by_trainer(name: str) -> bool:
    """The rule of the transformers version that the official `medium_models` optimisers get their groups from."""
    return "bias" not in name and "LayerNorm.weight" not in name


def check_medium(path: Path) -> int:
    case = json.loads(path.read_text())
    flags, order = case["official_flags"], case["param_order"]
    double = "fp64" in case["case"]
    dtype = torch.float64 if double else torch.float32
    loss_at, free_at, replay_at = (DOUBLE,) * 3 if double else (LOSS, FREE, REPLAY)

    def build() -> tuple[PromptRoberta, Named]:
        model = prompt_model(path.parent, case["num_labels"], dtype)
        return model, ordered(model, order)

    def closure_of(model: PromptRoberta, batch: dict) -> Callable[[], torch.Tensor | float]:
        inputs = batch_tensors(batch)
        labels = inputs.pop("labels")
        arguments = (model, inputs["input_ids"], inputs["attention_mask"], inputs["mask_pos"], case["label_word_ids"])
        if flags.get("optimize_acc"):
            return lambda: minus_accuracy(label_word_logits(*arguments), labels)
        return lambda: prompt_mlm_loss(*arguments, labels)

    def optimizer_over(named: Named, seeds: Iterator[int] | Sequence[int]) -> MeZO:
        optimizer = MeZO(
            named,
            case["learning_rate"],
            eps=case["zo_eps"],
            weight_decay=case["weight_decay"],
            decay_filter=decayed_by_trainer if flags.get("zero_order_use_trainer_optim") else "all",
            num_directions=flags.get("zero_order_sample", 1),
            direction_schedule=flags.get("zero_order_sample_scheduler", "constant"),
            num_train_steps=case["max_steps"],
            direction_reduction="sum" if flags.get("scale_lr_with_samples") else "mean",
            optimizer=flags.get("optimizer", "sgd"),
            block_scales=case["layer_scales"],
            scale_estimate="expectation" if flags.get("change_grad_estimate") else "variance",
            direction_seeds=seeds,
        )
        if case["torch_seed"] is not None:
            optimizer.open_direction = one_stream(optimizer, case["torch_seed"])
        return optimizer

    model, named = build()
    count = check_scales(case, flags, model, closure_of(model, case["batches"][0]))
    seeds = legacy_numpy_seeds(case["np_seed"]) if case["torch_seed"] is None else itertools.repeat(0)
    optimizer = optimizer_over(named, seeds)
    losses, used, scalars = [], [], []
    for step, batch in zip(range(1, case["updates_applied"] + 1), itertools.cycle(case["batches"]), strict=False):
        result = optimizer.step(closure_of(model, batch))
        losses += itertools.chain.from_iterable(zip(result.losses_plus, result.losses_minus, strict=True))
        used += result.seeds
        scalars.append(result.projected_grads)
        count += 1 + check_weights(named, path, case, step, free_at, double)
    check_weights(named, path, case, "final", free_at, double)
    assert len(losses) == case["forward_passes"] == len(case["losses_in_call_order"])
    for k, (found, expected) in enumerate(zip(losses, case["losses_in_call_order"], strict=True)):
        close(found, expected, loss_at, f"loss of call {k}")
    assert case["torch_seed"] is not None or used == case["direction_seeds"], "direction seeds"

    model, named = build()
    replayed = optimizer_over(named, used)
    logged = iter(case["losses_in_call_order"])
    for step, own in enumerate(scalars, start=1):
        replayed.replay([(next(logged) - next(logged)) / (2 * case["zo_eps"]) for _ in own])
        count += check_weights(named, path, case, step, replay_at, double)
    return count


def one_stream(optimizer: MeZO, seed: int) -> Callable[[int], SequentialDirection]:
    """Directions that follow one another in a single stream, instead of each from a seed of its own."""
    generator = torch.Generator().manual_seed(seed)

    def open_direction(_seed: int) -> SequentialDirection:
        direction = SequentialDirection(0, optimizer.slots, Scratch(), random_access=True)
        direction._states[0] = generator.get_state()
        for slot in optimizer.slots:
            torch.empty(slot.parameter.shape, dtype=slot.parameter.dtype).normal_(generator=generator)
        return direction

    return open_direction


def check_scales(case: dict, flags: dict, model: nn.Module, closure: Callable[[], torch.Tensor]) -> int:
    if not case["layer_scales"]:
        return 0
    scales = measure_block_scales(model, flags["zo_variant"], closure)
    assert set(scales) == set(case["layer_scales"]), set(scales)
    for block, scale in scales.items():
        close(scale, case["layer_scales"][block], DOUBLE, f"scale of {block}")
    return len(scales)


def check_prompt_forward(path: Path) -> int:
    cases = json.loads(path.read_text())
    for case in cases:
        model = prompt_model(path.parent, case["num_labels"])
        batch = batch_tensors(case["batch"])
        arguments = model, batch["input_ids"], batch["attention_mask"], batch["mask_pos"], case["label_word_ids"]
        with torch.no_grad():
            logits = label_word_logits(*arguments)
            tensors_close(logits, torch.tensor(case["logits"]), LOSS, "logits")
            close(prompt_mlm_loss(*arguments, batch["labels"]).item(), case["loss"], LOSS, "loss")
        close(-minus_accuracy(logits, batch["labels"]), case["accuracy"], 1e-6, "accuracy")
    return len(cases)


CHECKS = [
    ("large/opt_config*.json", companion),
    ("large/roberta_config*.json", companion),
    ("large/lora_forward*.safetensors", check_lora_forward),
    ("large/prefix_init*.safetensors", check_prefix_init),
    ("large/opt_lm_*.json", check_opt),
    ("large/opt_cls_*.json", check_opt),
    ("large/roberta_mlm_*.json", check_roberta),
    ("large/opt_lora_*.json", check_lora),
    ("large/opt_prefix_*.json", check_prefix),
    ("large/opt_nondiff_*.json", check_nondiff),
    ("large/opt_drift_*.json", check_drift),
    ("large/normal_stream*.json", check_stream),
    ("medium/prompt_roberta_config*.json", companion),
    ("medium/prompt_roberta_forward*.json", check_prompt_forward),
    ("medium/med_*.json", check_medium),
    ("*/*.safetensors", companion),
]
