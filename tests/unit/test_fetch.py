"""Models of the Hub as folders: taken at their commit, rewritten as safetensors, gone on with after a break; sizes."""

import json
import shutil
import sys
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from reclaim import models
from reclaim.encoders import load_encoder
from reclaim.errors import InputError
from reclaim.fetch import download_bytes, fetch, model_files, print_sizes
from reclaim.tokenization import train_tokenizer

CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 20,
}
HUB = {"source": "hub", "id": "someone/model", "revision": "0" * 40, "family": "masked"}


@pytest.fixture
def folder(tmp_path):
    tokenizer = train_tokenizer("roberta", ["the cat sat on the mat"])
    models.build("roberta", tokenizer, CONFIG, seed=1).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def hub(monkeypatch, source):
    """Serve a folder in place of the Hub; gives what was asked for and the files that were downloaded."""
    asked = {"downloaded": []}

    def snapshot_download(repo_id, revision, local_dir, allow_patterns):
        asked.update(repo_id=repo_id, revision=revision)
        (local_dir / ".cache").mkdir(exist_ok=True)
        for name in allow_patterns:
            if not (local_dir / name).exists():
                if name == asked.get("breaks_at"):
                    raise OSError("connection lost")
                asked["downloaded"].append(name)
                shutil.copy(source / name, local_dir)

    def list_repo_files(self, repo_id, revision):
        return [path.name for path in source.iterdir()]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
    return asked


def test_a_hub_model_is_taken_at_its_commit(monkeypatch, folder, tmp_path):
    asked = hub(monkeypatch, folder)
    fetch(HUB, tmp_path / "fetched")
    assert (asked["repo_id"], asked["revision"]) == ("someone/model", "0" * 40)
    assert same(weights(models.load(folder, "masked")), weights(models.load(tmp_path / "fetched", "masked")))
    assert not any(path.is_dir() for path in (tmp_path / "fetched").iterdir())


def test_a_broken_download_goes_on(monkeypatch, folder, tmp_path):
    asked = hub(monkeypatch, folder)
    asked["breaks_at"] = "model.safetensors"
    with pytest.raises(InputError, match="connection lost"):
        fetch(HUB, tmp_path / "fetched", tmp_path / "state")
    before = list(asked.pop("downloaded"))
    assert before and not (tmp_path / "fetched").exists()
    asked |= {"downloaded": [], "breaks_at": None}
    fetch(HUB, tmp_path / "fetched", tmp_path / "state")
    assert "model.safetensors" in asked["downloaded"] and not set(before) & set(asked["downloaded"])
    assert same(weights(models.load(folder, "masked")), weights(models.load(tmp_path / "fetched", "masked")))
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("shards", [1, 2])
def test_weights_in_the_old_format_are_rewritten_as_safetensors(monkeypatch, folder, tmp_path, shards):
    model = models.load(folder, "masked")
    state = model.state_dict()
    names = ["pytorch_model.bin"] if shards == 1 else [f"pytorch_model-0000{i + 1}-of-00002.bin" for i in range(2)]
    parts = {name: dict(list(state.items())[i::shards]) for i, name in enumerate(names)}
    for name, part in parts.items():
        torch.save(part, folder / name)
    if shards > 1:
        index = {"metadata": {}, "weight_map": {tensor: name for name, part in parts.items() for tensor in part}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    hub(monkeypatch, folder)
    fetch(HUB, tmp_path / "fetched")
    assert not any(path.name.startswith("pytorch_model") for path in (tmp_path / "fetched").iterdir())
    assert same(weights(model), weights(models.load(tmp_path / "fetched", "masked")))


@pytest.mark.parametrize("tied", [True, False])
def test_a_t5_in_the_old_format_keeps_or_shares_its_head(monkeypatch, tmp_path, tied):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 60}
    config = T5Config(**sizes, decoder_start_token_id=0, tie_word_embeddings=True)
    model = T5ForConditionalGeneration(config).eval()
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(60, 16))
    config.save_pretrained(tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    settings |= {
        "tie_word_embeddings": tied,
        "scale_decoder_outputs": tied,
        "architectures": ["T5ForConditionalGeneration"],
    }
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    hub(monkeypatch, tmp_path / "model")
    fetch({**HUB, "family": "seq2seq"}, tmp_path / "fetched")
    loaded = models.load(tmp_path / "fetched", "seq2seq")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert torch.equal(loaded.encoder.embed_tokens.weight, model.shared.weight)
    assert torch.equal(loaded.lm_head.weight, loaded.shared.weight) == tied
    assert models.model_family(tmp_path / "fetched") == "seq2seq"


def test_a_hub_that_cannot_be_reached_is_said_so(monkeypatch, tmp_path):
    def fails(self, repo_id, revision):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", fails)
    with pytest.raises(InputError, match="someone/model.*no connection.*HF_TOKEN"):
        fetch(HUB, tmp_path / "fetched")


def test_a_local_model_is_copied(folder, tmp_path):
    fetch({"source": "local", "path": str(folder), "family": "masked"}, tmp_path / "copy")
    assert same(weights(models.load(folder, "masked")), weights(models.load(tmp_path / "copy", "masked")))
    with pytest.raises(InputError, match="config.json"):
        fetch({"source": "local", "path": str(tmp_path / "absent"), "family": "masked"}, tmp_path / "other")


def test_a_model_of_another_family_is_refused(monkeypatch, folder, tmp_path):
    spec = {"source": "local", "path": str(folder), "family": "causal"}
    with pytest.raises(InputError, match="which is masked; expected a causal model"):
        fetch(spec, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    fetch({**spec, "family": "classification"}, tmp_path / "copy")


def test_one_format_of_the_weights_is_taken():
    names = [
        "config.json",
        "tokenizer.model",
        "pytorch_model.bin",
        "flax_model.msgpack",
        "onnx/model.safetensors",
        "x.py",
    ]
    assert model_files(names) == ["config.json", "pytorch_model.bin", "tokenizer.model"]
    both = [*names, "model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json"]
    safe = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.model"]
    assert model_files(both) == safe


def test_sizes_count_what_will_be_fetched(monkeypatch, tmp_path, capsys):
    files = {"config.json": 10, "model.safetensors": 2_000_000_000, "pytorch_model.bin": 7, "README.md": 5}
    data = {"sst2/train.parquet": 3_000_000_000, "mnli/train.parquet": 50, "README.md": 5}

    def info(table):
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in table.items()]
        return lambda self, id, revision, files_metadata: SimpleNamespace(siblings=siblings)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info(files))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info(data))
    glue = {"source": "hub", "id": "nyu-mll/glue", "revision": "1" * 40, "name": "sst2"}
    assert download_bytes("models", HUB) == 2_000_000_010 and download_bytes("data", glue) == 3_000_000_000
    assert download_bytes("data", {**glue, "name": "default"}) == 3_000_000_050  # no folder of that name: all of it
    (tmp_path / "models" / "there").mkdir(parents=True)
    print_sizes({f"{tmp_path}/models/there": HUB, f"{tmp_path}/data/sst2": glue}, sys.stdout)
    assert capsys.readouterr().out.splitlines()[-1].split() == ["3.000", "GB", "to", "download"]


def test_the_projection_behind_an_encoder_is_fetched_too(monkeypatch, folder, tmp_path):
    """As repositories of sentence-transformers have it (GTR); an encoder without it would give other vectors unnoticed."""
    names = [
        "config.json",
        "model.safetensors",
        "2_Dense/config.json",
        "2_Dense/pytorch_model.bin",
        "1_Pooling/config.json",
    ]
    assert model_files(names) == ["2_Dense/pytorch_model.bin", "config.json", "model.safetensors"]
    assert "2_Dense/pytorch_model.bin" not in model_files([*names, "2_Dense/model.safetensors"])

    weight = torch.randn(5, 32)
    (folder / "2_Dense").mkdir()
    torch.save({"linear.weight": weight}, folder / "2_Dense" / "pytorch_model.bin")
    (folder / "model.safetensors").rename(tmp_path / "weights")
    torch.save(safetensors.torch.load_file(tmp_path / "weights"), folder / "pytorch_model.bin")
    monkeypatch.setenv("COPIES", str(tmp_path))
    fetch({"source": "local", "path": "${COPIES}/model"}, tmp_path / "fetched", tmp_path / "state")
    assert not list((tmp_path / "fetched").rglob("*.bin")) and (folder / "pytorch_model.bin").exists()
    texts = ["the cat", "the mat sat on"]
    plain, projected = (load_encoder(tmp_path / "fetched", normalize=False) for _ in range(2))
    plain.projection = None
    assert np.allclose(projected(texts), plain(texts) @ weight.numpy().T, atol=1e-5)


def test_the_size_of_a_single_file_is_that_of_the_file(monkeypatch):
    siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in (("a.tar", 7), ("b.json", 5))]
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(siblings=siblings), raising=True
    )
    assert download_bytes("data", {"id": "someone/data", "revision": "0" * 40, "file": "a.tar"}) == 7
