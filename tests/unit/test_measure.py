"""Measurements of their own: memory in the order that the methods must have, and a log that rebuilds its weights."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from reclaim.measure import run_memory, run_trajectory

TINY = {
    "config": {
        "vocab_size": 4096,
        "hidden_size": 128,
        "word_embed_proj_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 512,
        "max_position_embeddings": 64,
    },
    "batch_size": 8,
    "sequence_length": 32,
    "methods": ["inference", "mezo", "lora", "backprop"],
}


def test_memory():
    # In a new process, as a job is: what other tests left in this one might be freed meanwhile.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        rows = pool.submit(run_memory, TINY, seed=1, device="cpu").result()["costs"]
    peaks = {row["variant"]["method"]: row["value"] for row in rows if row["measure"] == "peak_bytes"}
    assert peaks["inference"] > 2**20
    assert peaks["mezo"] < peaks["inference"] + 2**21
    assert peaks["backprop"] > peaks["lora"] > 1.2 * peaks["mezo"]


def test_trajectory():
    rows = {
        row["metric"]: row["value"]
        for row in run_trajectory({"num_steps": 300, "num_parameters": 50}, seed=2)["metrics"]
    }
    assert rows["max_abs_difference"] == 0.0
    assert rows["max_abs_change"] > 0.01
    assert 1200 < rows["log_bytes"] < 4000
