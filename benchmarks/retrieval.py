"""Index and query throughput and memory of BM25 on generated passages, beside bm25s (numpy and numba) in the same run.

Passages of 100 words whose frequencies follow Zipf's law. Two kinds of queries: mixed (6 rare and 4 frequent words) and rare
(6 rare words), best 100. Every row is CPU time of one thread in a process of its own, so that peak memory is its own too.
`numpy`: a partition of the whole score vector; `non-zero`: its scores, non-zero ones selected first. Where numba is
installed bm25s adds up compiled in all its ways. `ours` compiles itself only for batches that take longer than compiling.
Prints also the figures of the protocol's card for 100,000 passages on its machine.

    python benchmarks/retrieval.py                      # 20,000 passages, under two minutes
    python benchmarks/retrieval.py --passages 100000    # as in the card
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
WAYS = ("ours", "ours, compiled", "ours, 4 shards", "bm25s numpy", "bm25s non-zero", "bm25s numba")
TYPES, LENGTH, K = 300_000, 100, 100


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
    for _ in range(1000):
        few = rng.choice(rare, 6)
        queries["rare"].append(" ".join(f"w{n}" for n in few))
        queries["mixed"].append(" ".join(f"w{n}" for n in [*few, *rng.integers(0, 40, 4)]))
    return [" ".join(f"w{n}" for n in row) for row in numbers.tolist()], queries


def ours(texts, queries, folder: Path, shards: int, compiled: bool) -> dict:
    import pandas as pd

    from reclaim.io import write_json, write_parquet
    from reclaim.retrieval import build_index, open_index

    (folder / "data").mkdir()
    frame = pd.DataFrame({"id": [str(number) for number in range(len(texts))], "text": texts})
    write_parquet(frame, folder / "data" / "train.parquet")
    info = {"kind": "text", "rows": {"train": len(texts)}, "sha256": {"train.parquet": "0"}}
    write_json(info, folder / "data" / "dataset.json")
    started = time.process_time()
    build_index(folder / "data", {"backend": "bm25", "shards": shards}, folder / "index", state_dir=folder / "state")
    result = {"index_s": time.process_time() - started, "disk": size(folder / "index")}
    index = open_index(folder / "index", verify=False)
    for shard in index.shards:
        shard.compiled = compiled
    for kind, asked in queries.items():
        index.search({"0": asked[0]}, K)
        result[kind] = rate(lambda part: index.search(dict(enumerate(part)), K), asked)
    return result


def theirs(texts, queries, folder: Path, way: str) -> dict:
    import bm25s
    import numpy as np

    from reclaim.retrieval import best
    from reclaim.retrieval_bm25 import split

    started = time.process_time()
    backend = "numba" if way == "numba" else "numpy"
    index = bm25s.BM25(method="lucene", k1=0.9, b=0.4, backend=backend)
    index.index([split(text) for text in texts], show_progress=False)
    result = {"index_s": time.process_time() - started}
    index.save(str(folder / "index"))
    result["disk"] = size(folder / "index")
    for kind, asked in queries.items():
        words = [split(query) for query in asked]

        def search(part):
            if way != "non-zero":
                return index.retrieve(part, k=K, show_progress=False, n_threads=0)
            found = []
            for query in part:
                scores = index.get_scores(query)
                rows = np.flatnonzero(scores)
                found.append(best(rows, scores[rows], K))
            return found

        search(words[:2])  # numba compiles itself here
        result[kind] = rate(search, words)
    return result


def rate(search, queries) -> float:
    """Queries a CPU second, for at most some two seconds."""
    done, started = 0, time.process_time()
    for start in range(0, len(queries), 50):
        search(queries[start : start + 50])
        done += len(queries[start : start + 50])
        if time.process_time() - started > 2:
            break
    return done / (time.process_time() - started)


def size(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def run_one(way: str, count: int) -> dict:
    texts, queries = generate(count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if way.startswith("ours"):
            result = ours(texts, queries, folder, 4 if "shards" in way else 1, "compiled" in way)
        else:
            result = theirs(texts, queries, folder, way.removeprefix("bm25s "))
    return result | {"rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "before": before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(run_one(options.way, options.passages)))
        return
    print(f"{options.passages} passages of {LENGTH} words; peak memory holds the passages themselves in every row")
    header = ("way", "index CPU s", "disk MB", "peak MB", "mixed q/s", "rare q/s")
    print("{:>18} {:>12} {:>8} {:>8} {:>10} {:>9}".format(*header))
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--passages", str(options.passages), "--way", way]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{way:>18} failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        row = found[way] = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{way:>18} {row['index_s']:>12.1f} {row['disk']:>8.0f} {row['rss']:>8.0f} {row['mixed']:>10.0f} "
            f"{row['rare']:>9.0f}",
            flush=True,
        )
    for way, (index_s, disk, mixed, rare) in CARD.items():
        shown = "–" if mixed is None else str(mixed)
        print(f"{way + ' (card)':>18} {index_s:>12} {disk:>8} {'':>8} {shown:>10} {rare:>9}")
    for mine in ("ours", "ours, compiled"):
        for kind in ("mixed", "rare") if mine in found else ():
            ratios = {way: found[mine][kind] / row[kind] for way, row in found.items() if way.startswith("bm25s")}
            print(f"{mine} against, {kind}: " + ", ".join(f"{way} {ratio:.1f}x" for way, ratio in ratios.items()))
    if "ours" in found:
        ratio = found.get("bm25s numpy", {}).get("index_s", 0) / found["ours"]["index_s"]
        print(f"building: {ratio:.1f}x as fast as bm25s")


if __name__ == "__main__":
    main()
