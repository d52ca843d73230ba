"""Index and query throughput, memory and disk of BM25 on generated passages: ours, bm25s and tantivy in the same run.

Passages of 100 words whose frequencies follow Zipf's law. Two kinds of queries: mixed (6 rare and 4 frequent words) and rare
(6 rare words), best 100, asked a thousand at a time. Every row is CPU time of one thread in a process of its own, so that peak
memory is its own too. `first`: the first thousand, compiling included; `settled`: queries a CPU second after some seconds of
them. `bm25s non-zero`: scores by bm25s with numpy, those that are not zero selected before the best are. tantivy and bm25s give
any of equal scores and keep one index; `ours` orders them by passage, and compiles once so much was asked that it pays.
Prints also the figures of the protocol's card for 100,000 passages on its machine.

    python benchmarks/retrieval.py      # four minutes of CPU; of fewer `--passages` less, in which `ours` may not settle

tantivy is the extra `bench`: pip install --constraint constraints.txt --editable '.[bench]'
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

# CPU seconds to index 100,000 passages, MB on disk, queries a CPU second (mixed, rare), from the card.
CARD = {
    "bm25s numpy": (13.5, 67, 640, 72),
    "bm25s non-zero": (13.5, 67, None, 3200),
    "bm25s numba": (13.5, 67, 3300, 7500),
    "tantivy": (3.2, 26, 830, 8600),
}
WAYS = ("ours", "ours, 4 shards", "ours, 16 shards", "bm25s numpy", "bm25s non-zero", "bm25s numba", "tantivy")
TYPES, LENGTH, K, QUERIES = 300_000, 100, 100, 1000
# CPU seconds of queries before their rate counts, and during which it does.
SETTLING_S, MEASURED_S = 3.0, 1.0


def generate(count: int):
    """Texts and queries, as functions of the count alone."""
    import numpy as np

    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, TYPES + 1)
    cumulated = np.cumsum(weights / weights.sum())
    numbers = np.minimum(np.searchsorted(cumulated, rng.random((count, LENGTH))), TYPES - 1)
    used = np.unique(numbers)
    rare = used[(used > 2000) & (used < 60_000)]
    queries = {"mixed": [], "rare": []}
    for _ in range(QUERIES):
        few = rng.choice(rare, 6)
        queries["rare"].append(" ".join(f"w{n}" for n in few))
        queries["mixed"].append(" ".join(f"w{n}" for n in [*few, *rng.integers(0, 40, 4)]))
    return [" ".join(f"w{n}" for n in row) for row in numbers.tolist()], queries


def ours(texts, folder: Path, shards: int):
    """Build; gives a function of queries."""
    import pandas as pd

    import reclaim.retrieval_bm25  # noqa: F401  (so that building does not count it)
    from reclaim.io import write_json, write_parquet
    from reclaim.retrieval import build_index, open_index

    (folder / "data").mkdir()
    frame = pd.DataFrame({"id": [str(number) for number in range(len(texts))], "text": texts})
    write_parquet(frame, folder / "data" / "train.parquet")
    info = {"kind": "text", "rows": {"train": len(texts)}, "sha256": {"train.parquet": "0"}}
    write_json(info, folder / "data" / "dataset.json")

    def build():
        build_index(
            folder / "data", {"backend": "bm25", "shards": shards}, folder / "index", state_dir=folder / "state"
        )
        index = open_index(folder / "index", verify=False)
        return lambda asked: index.search({str(number): query for number, query in enumerate(asked)}, K)

    return build


def by_bm25s(texts, folder: Path, way: str):
    import bm25s
    import numpy as np

    from reclaim.retrieval import best
    from reclaim.retrieval_bm25 import split

    def build():
        index = bm25s.BM25(method="lucene", k1=0.9, b=0.4, backend="numba" if way == "numba" else "numpy")
        index.index([split(text) for text in texts], show_progress=False)
        index.save(folder / "index", show_progress=False)

        def search(asked):
            words = [split(query) for query in asked]
            if way != "non-zero":
                index.retrieve(words, k=K, show_progress=False)
                return
            for query in words:
                scores = index.get_scores(query)
                rows = np.flatnonzero(scores)
                best(rows, scores[rows], K)

        return search

    return build


def by_tantivy(texts, folder: Path):
    import tantivy

    (folder / "index").mkdir()

    def build():
        schema = tantivy.SchemaBuilder().add_text_field("text", stored=False, index_option="freq").build()
        index = tantivy.Index(schema, path=str(folder / "index"))
        writer = index.writer(heap_size=200_000_000, num_threads=1)
        for text in texts:
            writer.add_document(tantivy.Document(text=[text]))
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        searcher = index.searcher()
        return lambda asked: [searcher.search(index.parse_query(query, ["text"]), K) for query in asked]

    return build


def size(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def rate(search, queries, seconds: float) -> float:
    """Queries a CPU second, asked a thousand at a time for some seconds."""
    done, started = 0, time.process_time()
    while not done or time.process_time() - started < seconds:
        search(queries)
        done += len(queries)
    return done / (time.process_time() - started)


def run_one(way: str, count: int) -> dict:
    texts, queries = generate(count)
    library, _, variant = way.partition(" ")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if library == "bm25s":
            build = by_bm25s(texts, folder, variant)
        elif library == "tantivy":
            build = by_tantivy(texts, folder)
        else:
            build = ours(texts, folder, int(variant.split()[0]) if variant else 1)
        started = time.process_time()
        search = build()
        result = {"index_s": time.process_time() - started, "disk": size(folder / "index")}
        for kind, asked in queries.items():
            result[f"{kind} first"] = rate(search, asked, 0)
            rate(search, asked, SETTLING_S)
            result[f"{kind} settled"] = rate(search, asked, MEASURED_S)
    return result | {"rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(run_one(options.way, options.passages)))
        return
    print(f"{options.passages} passages of {LENGTH} words; peak memory holds the passages themselves in every row")
    rates = [f"{kind} {when}" for kind in ("mixed", "rare") for when in ("first", "settled")]
    line = "{:>22} {:>12} {:>8} {:>8} {:>12} {:>14} {:>11} {:>13}"
    print(line.format("", "index CPU s", "disk MB", "peak MB", *(f"{name}" for name in rates)))
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--passages", str(options.passages), "--way", way]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{way:>22} failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        row = found[way] = json.loads(done.stdout.splitlines()[-1])
        shown = [f"{row['index_s']:.1f}", *(f"{row[name]:.0f}" for name in ("disk", "rss", *rates))]
        print(line.format(way, *shown), flush=True)
    for way, (index_s, disk, mixed, rare) in CARD.items():
        print(line.format(f"{way} (card)", index_s, disk, "", "", mixed or "–", "", rare))
    if "ours" in found:
        for name in rates:
            others = {way: row[name] for way, row in found.items() if not way.startswith("ours")}
            best = max(others, key=others.get)
            print(f"ours against the best other row, {name}: {found['ours'][name] / others[best]:.2f}x {best}")


if __name__ == "__main__":
    main()
