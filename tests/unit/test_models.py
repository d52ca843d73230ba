"""Models from scratch and from a folder: one way to load them, and clear words where they cannot be."""

import shutil

import pytest
import torch

import reclaim.models as models
from reclaim.errors import InputError
from reclaim.tokenization import train_tokenizer

CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 20,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer("roberta", ["the cat sat on the mat"])


@pytest.fixture
def folder(tokenizer, tmp_path):
    models.build("roberta", tokenizer, CONFIG, seed=1).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_weights_are_a_function_of_the_seed_and_leave_the_global_stream_alone(tokenizer):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (weights(models.build("roberta", tokenizer, CONFIG, seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(first, again) and not same(first, other)


def test_a_round_trip_changes_nothing(tokenizer, folder):
    assert same(weights(models.build("roberta", tokenizer, CONFIG, 1)), weights(models.load(folder, "masked")))
    assert models.model_family(folder) == "masked"
    assert models.load_tokenizer(folder).get_vocab() == tokenizer.get_vocab()


def test_a_fresh_head_is_a_function_of_the_seed(folder):
    heads = [models.load(folder, "classification", seed, num_labels=3).classifier.out_proj.weight for seed in (1, 1, 2)]
    assert heads[0].shape == (3, 32)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_faults_are_named(tokenizer, folder, tmp_path):
    with pytest.raises(InputError, match="models.*config.*width"):
        models.build("roberta", tokenizer, {**CONFIG, "width": 3}, 1)
    with pytest.raises(InputError, match="architecture"):
        models.build("lstm", tokenizer, CONFIG, 1)
    with pytest.raises(InputError, match="config.json"):
        models.load(tmp_path / "absent", "masked")
    weights_file = folder / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:1000])
    with pytest.raises(InputError, match="weights"):
        models.load(folder, "masked")
    weights_file.unlink()
    with pytest.raises(InputError, match="safetensors"):
        models.load(folder, "masked")


def test_the_study_s_checkpoints_are_not_built_as_another_network(folder, tmp_path):
    copy = tmp_path / "efficient_mlm_m0.40"
    shutil.copytree(folder, copy)
    with pytest.raises(InputError, match="prelayernorm"):
        models.load(copy, "masked")
