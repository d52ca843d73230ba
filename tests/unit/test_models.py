"""Models from scratch, from a folder and from the Hub: one way to load them, and clear words where they cannot be."""

import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

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
HUB = {"source": "hub", "id": "someone/model", "revision": "0" * 40, "family": "masked"}


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


def hub(monkeypatch, source):
    """Serve a folder in place of the Hub."""
    asked = {}

    def snapshot_download(repo_id, revision, local_dir, allow_patterns):
        asked.update(repo_id=repo_id, revision=revision)
        names = {path for pattern in allow_patterns for path in source.glob(pattern)}
        local_dir.mkdir(exist_ok=True)
        for path in names:
            shutil.copy(path, local_dir)

    def list_repo_files(self, repo_id, revision):
        return [path.name for path in source.iterdir()]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
    return asked


def test_a_hub_model_is_taken_at_its_commit(monkeypatch, folder, tmp_path):
    asked = hub(monkeypatch, folder)
    models.fetch(HUB, tmp_path / "fetched")
    assert asked == {"repo_id": "someone/model", "revision": "0" * 40}
    assert same(weights(models.load(folder, "masked")), weights(models.load(tmp_path / "fetched", "masked")))


def test_weights_in_the_old_format_are_rewritten_as_safetensors(monkeypatch, folder, tmp_path):
    expected = weights(models.load(folder, "masked"))
    torch.save(expected, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    hub(monkeypatch, folder)
    models.fetch(HUB, tmp_path / "fetched")
    names = {path.name for path in (tmp_path / "fetched").iterdir()}
    assert "model.safetensors" in names and not any(name.endswith(".bin") for name in names)
    assert same(expected, weights(models.load(tmp_path / "fetched", "masked")))


def test_a_hub_that_cannot_be_reached_is_said_so(monkeypatch, tmp_path):
    def fails(self, repo_id, revision):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", fails)
    with pytest.raises(InputError, match="someone/model.*no connection.*HF_TOKEN"):
        models.fetch(HUB, tmp_path / "fetched")


def test_a_local_model_is_copied(folder, tmp_path):
    models.fetch({"source": "local", "path": str(folder), "family": "masked"}, tmp_path / "copy")
    assert same(weights(models.load(folder, "masked")), weights(models.load(tmp_path / "copy", "masked")))
    with pytest.raises(InputError, match="config.json"):
        models.fetch({"source": "local", "path": str(tmp_path / "absent"), "family": "masked"}, tmp_path / "other")
