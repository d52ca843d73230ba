"""Checks of the ALCE vectors that hold prompts, loops, retrieval and reranking."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import alce_stubs
from reclaim.alce.interactive import STOP, Interaction, interact
from reclaim.alce.oracle import oracle_passages, recall
from reclaim.alce.post_hoc import cite_post_hoc, file_suffix
from reclaim.alce.prompts import (
    Prompts,
    PromptSettings,
    Room,
    build_prompts,
    clean_output,
    context_length,
    demo_numbers,
    own_templates,
    result_name,
)
from reclaim.alce.rerank import by_official_score, by_recall
from reclaim.alce.search import EncoderSearch, TfidfSearch
from reclaim.errors import InputError
from reclaim.io import write_json, write_parquet
from reclaim.metrics.sentences import sentence_splitter
from reclaim.retrieval import build_index, open_index
from reclaim.retrieval_bm25 import lucene_length


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def encoder_search(documents):
    return EncoderSearch(documents, alce_stubs.encode)


def settings_of(config):
    """The official options of a case."""
    in_demo = config.get("ndoc_in_demo") if config.get("fewer_doc_in_demo") else None
    return PromptSettings(
        shot=config["shot"],
        ndoc=config["ndoc"],
        seed=config["seed"],
        use_shorter=config.get("use_shorter"),
        ndoc_in_demo=0 if config.get("no_doc_in_demo") else in_demo,
        retrieve_in_all_docs=config.get("retrieve_in_all_docs", False),
    )


def built(case):
    """Prompts of a case, its prompt file and settings."""
    prompts, settings = Prompts.from_official(case["prompt_file"], "case"), settings_of(case["config"])
    name = result_name(
        case["dataset"],
        case["config"].get("model", "stub"),
        "t",
        settings,
        quick_test=case["config"].get("quick_test"),
        num_samples=case["config"].get("num_samples", 1),
        force_cite_show=case["config"].get("force_cite_show", False),
    )
    return build_prompts(case["eval_data"], prompts, settings), prompts, name


def room_of(config):
    model = config.get("model", "stub")
    limit = config.get("max_length", 2048)
    # The test's own stub has a context without end.
    limit = context_length(model, limit) if "model" in config or "max_length" in config else 10**9
    return Room(limit, config.get("max_new_tokens", 300), lambda text: len(text.split()))


def check_prompts(path):
    cases = read(path)
    for case in cases:
        items, _, name = built(case)
        expected, room = case["expected"], room_of(case["config"])
        assert name + ".json" == expected["result_file_name"], case["note"]
        calls = iter(expected["calls"])
        for item, wanted in zip(items, expected["items"], strict=True):
            assert item["prompt"] == wanted["prompt"], case["note"]
            assert [each["title"] for each in item["docs"]] == wanted["docs_titles"], case["note"]
            outputs = wanted["output"] if isinstance(wanted["output"], list) else [wanted["output"]]
            for output in outputs:
                call = next(calls)
                assert room(item["prompt"]) == call["max_tokens"], case["note"]
                assert clean_output(call["scripted_answer"]) == output, case["note"]
    return len(cases)


def check_interactive(path):
    cases = read(path)
    for case in cases:
        config = case["config"]
        items, prompts, name = built(case)
        interaction = Interaction(
            query=config["interactive_query"],
            max_turn=config.get("max_turn", 10),
            max_doc_show=config.get("max_doc_show", 3),
            force_cite_show=config.get("force_cite_show", False),
            lists=case["dataset"] == "qampari",
        )
        tfidf = config.get("retriever") == "tfidf"
        scripted, asked = list(case["scripted_answers"]), []

        def write(texts, keys, asked=asked, scripted=scripted):
            lines = []
            for text in texts:
                lines.append(scripted[min(len(asked), len(scripted) - 1)])
                asked.append(text)
            return lines

        found = interact(
            items,
            write,
            prompts.doc_prompt,
            interaction,
            split=sentence_splitter(),
            make_search=TfidfSearch if tfidf else encoder_search,
        )
        expected = case["expected"]
        if "raises" in expected:  # the original has no searcher there; this one has
            assert tfidf and all(isinstance(item["output"], str) for item in found)
            continue
        assert name + ".json" == expected["result_file_name"], case["note"]
        for item, wanted in zip(found, expected["items"], strict=True):
            assert item["output"] == wanted["output"], (case["note"], item["output"], wanted["output"])
            assert item["prompt"] == wanted["prompt"], case["note"]
            assert [each["title"] for each in item["docs"]] == wanted["docs_titles"], case["note"]
            assert item["doc_history"] == wanted["doc_history"], case["note"]
        assert len(asked) == len(expected["calls"]), case["note"]
        for text, call in zip(asked, expected["calls"], strict=True):
            assert text.endswith(call["prompt_tail"]) and call["stop"] == list(STOP), case["note"]
    return len(cases)


def check_post_hoc(path):
    cases = read(path)
    for case in cases:
        overwrite, tfidf = "--overwrite" in case["extra_args"], "tfidf" in case["extra_args"]
        expected = case["expected"]

        def cite(case=case, overwrite=overwrite, tfidf=tfidf):
            return cite_post_hoc(
                case["data"],
                TfidfSearch if tfidf else encoder_search,
                sentence_splitter(),
                overwrite=overwrite,
                external=case["external"],
                lists=case["dataset"] == "qampari",
            )

        if expected.get("raises") == "AssertionError":
            try:
                cite()
            except InputError:
                continue
            raise AssertionError(f"{case['note']}: no InputError")
        if "raises" in expected:
            assert tfidf and all("[" in item["output"] for item in cite())
            continue
        found = cite()
        assert [item["output"] for item in found] == expected["outputs"], (case["note"], found, expected["outputs"])
        assert [len(item["docs"]) for item in found] == expected["n_docs"], case["note"]
        suffix = file_suffix("gtr-t5-large", overwrite, case["external"] is not None)
        assert suffix == expected["suffix"], case["note"]
    return len(cases)


def check_search(path):
    cases = 0
    for case in read(path):
        searches = {"tfidf_best": TfidfSearch(case["docs"]), "hash_embed_best": encoder_search(case["docs"])}
        for query in case["queries"]:
            for key, search in searches.items():
                assert search.best([query["query"]]) == [query[key]], (query, key)
                cases += 1
    return cases


def check_rerank(path):
    cases = read(path)
    split = sentence_splitter()
    for case in cases:
        lists, asked = case["dataset"] == "qampari", []

        def probabilities(pairs, asked=asked):
            asked += pairs
            return [alce_stubs.probability(*pair) for pair in pairs]

        items, candidates = [{"question": case["question"], "docs": case["docs"]}], [case["candidates"]]
        chosen = by_official_score(items, candidates, probabilities, split, score=case["mode"], lists=lists)
        assert chosen == [case["expected_official"]], (case["note"], case["mode"], chosen)
        assert len(asked) == case["n_nli_calls"], (case["note"], len(asked))
        if case["first_premise_has_all_docs"]:
            assert all(document["text"] in asked[0][0] for document in case["docs"]), case["note"]
        judge = alce_stubs.judge("half" if lists else "overlap")
        (number,), (recalls,) = by_recall(items, candidates, judge, split, lists=lists)
        wanted = [0.0 if value is None else value for value in case["citation_recall_of_each_candidate_by_eval"]]
        assert np.allclose(np.array(recalls) * 100, wanted, atol=1e-9), (case["note"], recalls, wanted)
        assert number == int(np.argmax(wanted)), case["note"]
    return len(cases)


def check_demo_sampling(path):
    cases = read(path)
    for case in cases:
        key = next(key for key in case if key.startswith("then_quick_test_"))
        size, of = map(int, key.removeprefix("then_quick_test_").split("_of_"))
        demos, tried = demo_numbers(case["seed"], case["pool"], case["shot"], size, of)
        assert demos == case["demo_ids"] == demo_numbers(case["seed"], case["pool"], case["shot"]), case
        assert tried == case[key], case
    return len(cases)


def check_templates(path):
    """Our own templates have the official forms; the instruction texts are ours."""
    content, own = read(path), own_templates()
    assert content["demo_sep"] == own["demo_sep"] and content["doc_prompt"] == own["doc_prompt"]
    for name, file in content["files"].items():
        task, _, mode = name.partition("_")
        form = own["closed_prompt" if mode == "closedbook" else "demo_prompt"]
        assert file["demo_prompt"] == form, name
        assert own["instructions"][task][mode].startswith("Instruction: "), name
        assert file["demo_answer_is_list"] == mode.startswith("interact"), name
        shorter = {"extraction", "summary"} if mode not in ("default", "light_inst", "closedbook") else set()
        assert set(file["demo_doc_keys"]) == {"text", "title"} | shorter, name
    return len(content["files"])


def check_bm25(path):
    content = read(path)
    documents = content["documents"]
    cases = 0
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "documents"
        data.mkdir()
        ids = [str(number) for number in range(len(documents))]
        write_parquet(pd.DataFrame({"id": ids, "text": documents}), data / "train.parquet")
        info = {"kind": "text", "rows": {"train": len(documents)}, "sha256": {"train.parquet": "0"}}
        write_json(info, data / "dataset.json")
        for constants in sorted({(case["k1"], case["b"]) for case in content["results"]}):
            tables = []
            cases_of = [case for case in content["results"] if (case["k1"], case["b"]) == constants]
            for shards in (1, 3):
                target = Path(folder) / f"{constants}.{shards}"
                spec = {"backend": "bm25", "k1": constants[0], "b": constants[1], "shards": shards}
                build_index(data, spec, target, state_dir=Path(folder) / "state")
                queries = {str(number): case["query"] for number, case in enumerate(cases_of)}
                tables.append(open_index(target).search(queries, 10))
            assert tables[0].equals(tables[1]), f"{constants}: 3 shards rank otherwise"
            for number, case in enumerate(cases_of):
                found = tables[0][tables[0]["query"] == str(number)]
                assert found["passage"].astype(int).tolist() == [row for row, _ in case["top10"]], case["query"]
                wanted = [score for _, score in case["top10"]]
                assert np.allclose(found["score"], wanted, atol=1e-4), case["query"]
                cases += 1
    for length, expected in content["lucene_length_round_trip"]:
        assert lucene_length(length) == expected, length
        cases += 1
    return cases


def check_oracle(path):
    cases = read(path)
    for case in cases:
        found, cap = np.array(case["answers_found"], dtype=bool), case["recall_cap"]
        for k, expected in case["recall_at"].items():
            assert abs(recall(found, int(k), cap) - expected) < 1e-9, (k, expected)
        chosen = oracle_passages(found, 5, cap)
        assert len(set(chosen)) == len(case["oracle_ids_reference"])
        assert abs(recall(found[chosen], cap=cap) - case["oracle_recall_reference"]) < 1e-9
    return len(cases)


CHECKS = [
    ("bm25*.json", check_bm25),
    ("demo_sampling*.json", check_demo_sampling),
    ("interactive*.json", check_interactive),
    ("oracle_and_recall*.json", check_oracle),
    ("post_hoc*.json", check_post_hoc),
    ("prompts*.json", check_prompts),
    ("rerank*.json", check_rerank),
    ("search_within_docs*.json", check_search),
    ("templates*.json", check_templates),
]
