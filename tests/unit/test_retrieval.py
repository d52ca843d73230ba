"""Indexes: equal to bm25s and to brute force, whatever the shards; killed builds, damaged shards, faiss types."""

import math

import bm25s
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclaim import retrieval, retrieval_bm25
from reclaim.errors import InputError
from reclaim.io import write_json, write_parquet
from reclaim.metrics.retrieval import ndcg_at_k, recall_at_k
from reclaim.retrieval import build_index, damage, open_index, shard_name
from reclaim.retrieval_bm25 import best_of_all, lucene_length, split

WORDS = [f"w{number}" for number in range(60)]


def passages(count, seed=0, length=12):
    """Texts with frequent and rare words."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(WORDS) + 1)
    return [" ".join(rng.choice(WORDS, rng.integers(1, length), p=weights / weights.sum())) for _ in range(count)]


def data_set(folder, texts, titles=None):
    folder.mkdir()
    frame = pd.DataFrame({"id": [f"p{number}" for number in range(len(texts))], "text": texts})
    if titles is not None:
        frame["title"] = titles
    write_parquet(frame, folder / "train.parquet")
    write_json(
        {"kind": "text", "rows": {"train": len(texts)}, "sha256": {"train.parquet": str(texts)}},
        folder / "dataset.json",
    )
    return folder


def encode(texts):
    """A deterministic encoder: counts of words in 16 boxes, normalised."""
    vectors = np.zeros((len(texts), 16), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in split(text):
            vectors[row, sum(map(ord, word)) % 16] += 1
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


QUERIES = {"a": "w1 w40 w40", "b": "w0 w2", "c": "w55 w59", "none": "unknown", "empty": "", "d": "w0 w1 w2 w3 w30"}
SPECS = [
    {"backend": "bm25"},
    {"backend": "bm25", "analyzer": "english", "lucene_lengths": True},
    {"backend": "dense"},
    {"backend": "dense", "index_type": "flat16"},
    {"backend": "dense", "index_type": "IVF4,SQ8", "nprobe": 2},
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.get("index_type", spec.get("analyzer", spec["backend"])))
def test_any_number_of_shards_gives_the_same_table(tmp_path, spec):
    data = data_set(tmp_path / "data", passages(300))
    tables = []
    for shards in (1, 2, 7):
        folder = tmp_path / f"index-{shards}"
        build_index(data, {**spec, "shards": shards}, folder, state_dir=tmp_path / "state", encode=encode)
        index = open_index(folder, encode)
        tables.append(
            (index.search(QUERIES, 10), index.search(QUERIES, 4, among=[f"p{number}" for number in range(0, 300, 3)]))
        )
        assert not (tmp_path / "state").exists()
    for whole, part in tables[1:]:
        pd.testing.assert_frame_equal(whole, tables[0][0], check_exact=True)
        pd.testing.assert_frame_equal(part, tables[0][1], check_exact=True)
    assert list(tables[0][0].columns) == list(retrieval.COLUMNS)
    assert all(int(name[1:]) % 3 == 0 for name in tables[0][1]["passage"])


def test_scores_are_those_of_bm25s(tmp_path):
    texts = passages(400)
    build_index(
        data_set(tmp_path / "data", texts),
        {"backend": "bm25", "shards": 3},
        tmp_path / "index",
        state_dir=tmp_path / "s",
    )
    theirs = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    theirs.index([split(text) for text in texts], show_progress=False)
    for query in ("w1 w40 w40", "w0 w2", "w55 w59"):
        scores = theirs.get_scores(split(query))
        found = open_index(tmp_path / "index").search({"q": query}, 20)
        rows = found["passage"].str[1:].astype(int)
        assert np.allclose(found["score"], scores[rows], rtol=1e-5)
        assert np.allclose(np.sort(scores)[::-1][: len(found)], found["score"], rtol=1e-5)


# Constants of the module that send every query one way.
WAYS = {
    "numpy": {"RARE": -1, "PAYING": math.inf},
    "numba": {"RARE": -1, "PAYING": -1},
    "product": {"RARE": math.inf, "BLOCK": 40},
}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_each_way_gives_the_scores_of_brute_force_and_the_first_of_equal_ones(tmp_path_factory, seed, k):
    folder = tmp_path_factory.mktemp("index")
    texts = passages(150, seed, length=4)
    data = data_set(folder / "data", texts)
    build_index(data, {"backend": "bm25", "shards": 2}, folder / "index", state_dir=folder / "state")
    rng = np.random.default_rng(seed)
    queries = {
        "q": " ".join(rng.choice(WORDS, 6)),
        "twice": "w1 w1 w0",
        "none": "",
        "r": " ".join(rng.choice(WORDS, 2)),
    }
    among = [f"p{row}" for row in np.flatnonzero(rng.random(150) < 0.5)]
    tables = {}
    for way, constants in WAYS.items():
        with pytest.MonkeyPatch.context() as patch:
            for name, value in constants.items():
                patch.setattr(retrieval_bm25, name, value)
            index = open_index(folder / "index", verify=False)
            # The last one so deep that nothing is cut off.
            tables[way] = [index.search(queries, k), index.search(queries, k, among), index.search(queries, 150)]
    for way in ("numba", "product"):
        for table, expected in zip(tables[way], tables["numpy"], strict=True):
            pd.testing.assert_frame_equal(table, expected, check_exact=True)
    best, chosen, everything = tables["numpy"]
    scores = brute_force(texts, queries["q"])
    found = everything[everything["query"] == "q"]
    rows = found["passage"].str[1:].astype(int).to_numpy()
    assert set(rows) == set(np.flatnonzero(scores)) and np.allclose(found["score"], scores[rows], rtol=1e-5)
    assert (np.lexsort((rows, -found["score"])) == np.arange(len(rows))).all()
    for table, wanted in ((best, everything), (chosen, everything[everything["passage"].isin(among)])):
        expected = wanted.groupby("query", sort=False).head(k)
        assert (
            table[["query", "passage", "score"]].values.tolist()
            == expected[["query", "passage", "score"]].values.tolist()
        )


def brute_force(texts, query, k1=0.9, b=0.4):
    """The score of every text, by the formula."""
    counts = [split(text) for text in texts]
    mean = np.mean([len(words) for words in counts])
    scores = np.zeros(len(texts))
    for word in split(query):
        frequency = sum(word in words for words in counts)
        idf = math.log(1 + (len(texts) - frequency + 0.5) / (frequency + 0.5))
        for row, words in enumerate(counts):
            tf = words.count(word)
            scores[row] += idf * tf / (tf + k1 * (1 - b + b * len(words) / mean))
    return scores


def test_queries_are_compiled_once_so_much_was_asked_that_it_pays(tmp_path, monkeypatch):
    build_index(
        data_set(tmp_path / "data", passages(100)), {"backend": "bm25"}, tmp_path / "i", state_dir=tmp_path / "s"
    )
    postings = sum("w0" in split(text) for text in passages(100))
    monkeypatch.setattr(retrieval_bm25, "PAYING", 2.5 * postings)
    index = open_index(tmp_path / "i")
    compiled = [index.backend.prepare_queries(["w0"], index.shared, index.facts).compiled for _ in range(3)]
    assert compiled == [False, False, True]
    other = open_index(tmp_path / "i").backend
    assert not other.prepare_queries(["unknown"] * 99, index.shared, index.facts).compiled
    assert other.prepare_queries(["w0"] * 3, index.shared, index.facts).compiled


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=300), st.integers(1, 20))
def test_the_best_of_all_scores_are_those_of_a_sort(values, k):
    scores = np.array(values, dtype=np.float32)
    rows, found = best_of_all(scores, k)
    expected = [row for row in np.lexsort((np.arange(len(scores)), -scores)) if scores[row] > 0][:k]
    assert rows.tolist() == expected and found.tolist() == scores[expected].tolist()


def test_an_index_of_bm25_stays_on_the_disk(tmp_path):
    data = data_set(tmp_path / "data", ["", "?", *passages(100)])
    build_index(data, {"backend": "bm25", "shards": 51}, tmp_path / "index", state_dir=tmp_path / "state")
    index = open_index(tmp_path / "index")
    assert not len(index.shards[0].words) and index.search({"q": "w0"}, 3)["rank"].tolist() == [1, 2, 3]
    index.search({"q": "w0"}, 3)
    for shard in index.shards:
        matrix, scores = shard.matrix, shard.index.scores
        for values in (shard.words, matrix.data, matrix.indices, matrix.indptr, *(scores[name] for name in ARRAYS)):
            while values.base is not None and not isinstance(values, np.memmap):
                values = values.base
            assert isinstance(values, np.memmap)


ARRAYS = ("data", "indices", "indptr")


def test_a_killed_build_goes_on_behind_the_last_shard(tmp_path, monkeypatch):
    data = data_set(tmp_path / "data", passages(200))
    spec = {"backend": "bm25", "shards": 5}
    build_index(data, spec, tmp_path / "whole", state_dir=tmp_path / "s")
    written = []
    original = retrieval.make_backend

    def dying(*arguments):
        backend = original(*arguments)
        write = backend.write_shard

        def write_shard(passages, number, *rest):
            if number == 3 and 3 not in written:
                written.append(3)
                raise KeyboardInterrupt
            written.append(number)
            write(passages, number, *rest)

        backend.write_shard = write_shard
        return backend

    monkeypatch.setattr(retrieval, "make_backend", dying)
    with pytest.raises(KeyboardInterrupt):
        build_index(data, spec, tmp_path / "index", state_dir=tmp_path / "state")
    assert not (tmp_path / "index").exists()
    build_index(data, spec, tmp_path / "index", state_dir=tmp_path / "state")
    assert written == [0, 1, 2, 3, 3, 4]
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "index" / path.relative_to(tmp_path / "whole")).read_bytes()


@pytest.mark.parametrize(
    "spec", [{"backend": "bm25", "shards": 3}, {"backend": "dense", "shards": 3}], ids=["bm25", "dense"]
)
def test_a_damaged_shard_is_noticed_and_made_anew(tmp_path, spec):
    data, folder = data_set(tmp_path / "data", passages(100)), tmp_path / "index"
    options = {"state_dir": tmp_path / "state", "encode": encode}
    build_index(data, spec, folder, **options)
    table = open_index(folder, encode).search(QUERIES, 5)
    untouched = {path: path.stat().st_mtime_ns for path in (folder / shard_name(0)).iterdir()}
    victim = folder / shard_name(1) / ("data.csc.index.npy" if spec["backend"] == "bm25" else "vectors.npy")
    content = bytearray(victim.read_bytes())
    content[-2] ^= 1
    victim.write_bytes(bytes(content))
    with pytest.raises(InputError, match=shard_name(1)):
        open_index(folder, encode)
    build_index(data, spec, folder, **options)
    assert not damage(folder / shard_name(1))
    assert {path: path.stat().st_mtime_ns for path in (folder / shard_name(0)).iterdir()} == untouched
    pd.testing.assert_frame_equal(open_index(folder, encode).search(QUERIES, 5), table)


def test_titles_count_and_wrong_input_is_named(tmp_path):
    data = data_set(tmp_path / "data", ["rain today", "sun"], ["Weather", "Weather"])
    build_index(data, {"backend": "bm25"}, tmp_path / "index", state_dir=tmp_path / "state")
    assert open_index(tmp_path / "index").search({"q": "weather"}, 5)["passage"].tolist() == ["p1", "p0"]
    for spec in ({"backend": "lucene"}, {"backend": "bm25", "analyzer": "x"}, {"backend": "bm25", "k3": 1}):
        with pytest.raises(InputError):
            build_index(data, spec, tmp_path / "other", state_dir=tmp_path / "state")
    with pytest.raises(InputError, match="other data or settings"):
        build_index(data, {"backend": "bm25", "k1": 2.0}, tmp_path / "index", state_dir=tmp_path / "state")
    with pytest.raises(InputError, match="no index.json"):
        open_index(tmp_path)
    build_index(data, {"backend": "dense"}, tmp_path / "dense", state_dir=tmp_path / "state", encode=encode)
    with pytest.raises(InputError, match="no encoder"):
        open_index(tmp_path / "dense").search({"q": "x"}, 1)


def test_recall_and_ndcg():
    assert recall_at_k(["a", "b", "c"], {"c", "x"}, 2) == 0 and recall_at_k(["a", "b", "c"], {"c", "x"}, 3) == 0.5
    assert ndcg_at_k(["a", "b"], {"b": 1.0}, 2) == pytest.approx(1 / math.log2(3))
    assert ndcg_at_k(["b", "a"], {"b": 2.0, "a": 1.0}, 2) == 1 and math.isnan(ndcg_at_k(["a"], {}, 1))
    assert [lucene_length(length) for length in (0, 39, 41, 100, 255)] == [0, 39, 40, 96, 248]
    assert split("The owner's lakes", "english") == ["owner", "lake"]
