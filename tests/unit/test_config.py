"""A faulty configuration ends in one message that names the key; a good one passes."""

import copy
from pathlib import Path

import pytest
import yaml

from reclaim.config import check_config
from reclaim.errors import InputError

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "schemas" / "config.schema.json"
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())


def merge(base, overlay):
    for key, value in overlay.items():
        base[key] = (
            merge(base.get(key, {}), value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        )
    return base


def changed(path, value):
    config = copy.deepcopy(CONFIG)
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return config


def test_the_default_passes():
    check_config(CONFIG, SCHEMA)


@pytest.mark.parametrize("overlay", sorted(path.name for path in (ROOT / "config").glob("*.yaml")))
def test_every_overlay_passes(overlay, monkeypatch):
    monkeypatch.setenv("RECLAIM_DATA", "/nowhere")
    config, overlay = copy.deepcopy(CONFIG), yaml.safe_load((ROOT / "config" / overlay).read_text())
    for part in overlay.get("parts", []):
        config = merge(config, yaml.safe_load((ROOT / part).read_text()))
    check_config(merge(config, overlay), SCHEMA)


RATES = ("experiments", "mlm_masking", "rates")
METHODS = ("experiments", "mezo", "methods")
PARAMETERS = ("experiments", "mezo", "parameters")
CAUSAL = ("experiments", "mezo", "causal")


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        (("surprise",), 1, "config: surprise"),
        (("models", "medium", "width"), 64, "models.medium.width"),
        (("models", "medium", "tokenizer"), "absent", "models.medium.tokenizer"),
        (("recipes", "long", "num_train_steps"), "many", "recipes.long.num_train_steps"),
        (("recipes", "long", "learning_rate"), -1, "recipes.long.learning_rate"),
        ((*RATES, "seeds"), [], "experiments.mlm_masking.rates.seeds"),
        ((*RATES, "seeds"), [1, 1], "experiments.mlm_masking.rates.seeds"),
        ((*RATES, "checkpoints", 0, "masking", 1, "corruption"), 1.0, "masking[1].corruption"),
        ((*RATES, "checkpoints", 0, "masking", 1, "corruption"), 0, "masking[1].corruption"),
        ((*RATES, "checkpoints", 0, "masking", 1, "prediction"), 0.95, "checkpoints[0].masking"),
        ((*RATES, "checkpoints", 0, "masking", 1, "scheme"), "whole", "masking[1].scheme"),
        ((*RATES, "arms", 0, "recipe"), "absent", "arms[0].recipe"),
        ((*RATES, "arms", 0, "prompt"), True, "tasks.topics.templates"),
        ((*METHODS, "arms", 2, "task"), "absent", "arms[2].task"),
        ((*METHODS, "arms", 6, "objective"), "accuracy", "arms[6].objective"),
        ((*METHODS, "arms", 5, "objective"), "f1", "arms[5].objective"),
        ((*CAUSAL, "arms", 2, "objective"), "accuracy", "arms[2].objective"),
        ((*CAUSAL, "arms", 0, "method"), "calibrated", "arms[0].method"),
        ((*METHODS, "arms", 0, "labels"), "shuffled", "arms[0].labels"),
        ((*PARAMETERS, "arms", 1), {"method": "icl", "task": "last"}, "arms[1]: found no num_demonstrations"),
        ((*PARAMETERS, "arms", 2, "prompt"), False, "arms[2].prompt"),
        (("tasks", "last", "few_shot", "dev"), 0, "tasks.last.few_shot"),
        (("tasks", "last", "few_shot"), {"sampling": "per_class", "k": 64}, "tasks.last.few_shot"),
        (("tasks", "last", "templates", "masked"), "absent", "tasks.last.templates.masked"),
        (("tasks", "last", "templates", "masked"), {"template": "no mask"}, "tasks.last.templates.masked"),
        (("data", "idioms", "generator"), "absent", "data.idioms.generator"),
        (("data", "idioms", "source"), "web", "data.idioms.source"),
        (("experiments", "icl", "settings", "kind"), "absent", "experiments.icl.settings.kind"),
        (("experiments", "mezo", "memory", "batch_size"), 0, "config: experiments.mezo.memory.batch_size"),
        (("experiments", "mezo", "memory", "batches"), 1, "config: experiments.mezo.memory.batches"),
        (("run",), ["mezo/absent"], "config: run"),
        (("run",), [], "config: run"),
    ],
)
def test_a_fault_is_named(path, value, place):
    with pytest.raises(InputError) as caught:
        check_config(changed(path, value), SCHEMA)
    assert place in str(caught.value)
    assert "found" in str(caught.value) and "expected" in str(caught.value)


def test_three_copies_of_three_tenths_fit():
    """0.9 / 0.3 is above 3 in floating point; the masker takes three copies, and so must the check."""
    check_config(changed((*RATES, "checkpoints", 0, "masking", 1, "prediction"), 0.9), SCHEMA)
