"""The world's small generators under `generate`, the items, and the experiment: arms, controls, resume."""

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from reclaim import sources
from reclaim.alce.data import load_items
from reclaim.alce.experiment import run
from reclaim.alce.generation import ModelGenerator, Sampling
from reclaim.alce.language import VALUE, make_language, make_tokenizer, read_prompt
from reclaim.alce.pointer import build_pointer
from reclaim.alce.pointer_training import draw_episodes, train_pointer
from reclaim.alce.prompts import PromptSettings, build_prompts, load_prompts
from reclaim.alce.reader import load_reader
from reclaim.alce.systems import SYSTEMS
from reclaim.alce.world_data import IRRELEVANT, shorten, world_demos
from reclaim.encoders import TextEncoder
from reclaim.errors import InputError
from reclaim.models import build, load
from reclaim.outcome import read_outcomes, write_outcome
from reclaim.report.figures_alce import SYSTEM
from reclaim.report.system import SystemTables
from reclaim.retrieval import build_index
from reclaim.tokenization import model_vocab_size, train_tokenizer
from reclaim.world.passages import TASKS, draw_questions, draw_world, entails, stated_facts

TOKENIZER = make_tokenizer()
LANGUAGE = make_language(TOKENIZER)
WORLD = draw_world(np.random.default_rng(3), 12, 3)
CONSTANT = {"lr_scheduler_type": "constant"}


def items_of(task, count=12):
    """Questions with the passages of their name, all answers among them."""
    items = draw_questions(WORLD, task, count, np.random.default_rng(1))
    for number, item in enumerate(items):
        words = item["question"].replace("?", "").split()
        chosen = [passage for passage in WORLD.passages if passage.name in words][:15]
        item |= {"id": str(number), "docs": [{"title": each.title, "text": each.text} for each in chosen]}
    return items


@pytest.fixture(scope="module", params=TASKS)
def trained(request, tmp_path_factory):
    """A pointer model for a task after a short training, saved and loaded as any other model."""
    model = build_pointer(TOKENIZER, 1, LANGUAGE)
    recipe = {"num_train_steps": 60, "learning_rate": 2e-2, **CONSTANT}
    spec = {"episodes": 48, "num_names": 12, "num_types": 3, "recipe": recipe}
    train_pointer(model, request.param, spec, 1, None)
    folder = tmp_path_factory.mktemp("pointer")
    model.save_pretrained(folder)
    return request.param, load(folder, "causal")


def test_a_trained_pointer_writes_supported_answers(trained):
    task, model = trained
    prompts = load_prompts(task, "default", demos=world_demos(task, "default", num_names=12))
    built = build_prompts(items_of(task), prompts, PromptSettings(shot=1, ndoc=15))
    write = ModelGenerator(model, TOKENIZER, Sampling(temperature=0, max_new_tokens=150, max_length=4096), 0)
    outputs = write([item["prompt"] for item in built], [item["id"] for item in built])
    right = Counter()
    for item, output in zip(built, outputs, strict=True):
        premise = "\n".join(f"Title: {each['title']}\n{each['text']}" for each in item["docs"])
        entries = [f"{item['question']} {entry.strip()}" for entry in output.rstrip(".").split(",")]
        for statement in entries if task == "qampari" else [f"{part}." for part in output.rstrip(".").split(".")]:
            right[entails(premise, statement)] += 1
    assert right[True] > 10 and right[True] > 5 * right[False]


def test_a_cache_changes_nothing_and_padding_neither(trained):
    task, model = trained
    prompts = load_prompts(task, "default")
    built = build_prompts(items_of(task, 4), prompts, PromptSettings(shot=0, ndoc=5))
    built[0]["docs"] = built[0]["docs"][:1]
    texts = [item["prompt"] for item in built]
    write = ModelGenerator(model, TOKENIZER, Sampling(temperature=0, max_new_tokens=60), 0)
    together = write(texts, list("abcd"))
    assert [write([text], ["x"])[0] for text in texts] == together


def test_a_prompt_is_read_into_question_facts_and_mode():
    demos = world_demos("asqa", "interact_search", num_names=12)
    settings = PromptSettings(shot=2, ndoc=3)
    (item,) = build_prompts(items_of("asqa", 1), load_prompts("asqa", "default", demos=demos[:2]), settings)
    reading = read_prompt(TOKENIZER(item["prompt"])["input_ids"], LANGUAGE)
    words = {number: TOKENIZER.decode([token]).strip() for number, token in enumerate(LANGUAGE.spaced)}
    stated = {(words[name], words[kind], words[value]) for _, name, kind, value in reading.facts}
    texts = "\n".join(f"Title: {each['title']}\n{each['text']}" for each in item["docs"])
    assert stated == {(name, kind, value) for name, kind, _, value in stated_facts(texts)}
    assert reading.mode == "answer" and reading.places == [1, 1, 2, 2, 3, 3] and not reading.written
    assert words[reading.asked[1]] in item["question"]
    searching = build_prompts(
        items_of("asqa", 1), load_prompts("asqa", "interact_search", demos=demos), PromptSettings(2, 0)
    )
    line = searching[0]["prompt"] + "\n"
    assert read_prompt(TOKENIZER(line)["input_ids"], LANGUAGE).mode == "search"
    shown = line + "Search: hue of Bala\nDocument [4](Title: Bala (lake)): Its hue is bado.\nOutput:"
    reading = read_prompt(TOKENIZER(shown)["input_ids"], LANGUAGE)
    assert reading.mode == "output" and reading.places == [4]
    after = line + "Search: hue of Bala\nOutput: The hue of Bala (lake) is bado [4].\n"
    reading = read_prompt(TOKENIZER(after)["input_ids"], LANGUAGE)
    assert reading.begun and len(reading.written) == 1 and LANGUAGE.classes.count(VALUE) == 400
    with pytest.raises(InputError, match="Question"):
        read_prompt(TOKENIZER("nothing")["input_ids"], LANGUAGE)


def test_episodes_state_no_fact_twice_and_gold_answers_the_question():
    batch = draw_episodes(np.random.default_rng(0), "asqa", 200, num_names=12, num_types=3)
    for asked, facts, gold in zip(
        batch["asked"].tolist(), batch["facts"].tolist(), batch["gold"].tolist(), strict=True
    ):
        stated = [((fact[0] - 1) // 3, fact[1], fact[2]) for fact in facts if fact[3]]
        assert len(stated) == len(set(stated))
        for fact, answers in zip(facts, gold, strict=True):
            assert answers == bool(fact[3] and fact[1] == asked[1] and (fact[0] - 1) // 3 == (asked[0] - 1) // 3)
    assert 0.5 < batch["gold"].sum(dim=1).float().mean() < 2.5


def test_short_texts_keep_what_answers():
    document = {"title": "Bala (lake)", "text": "Its hue is bado. Its owner is bafo."}
    assert shorten("What is the colour of Bala?", document) == "The hue of Bala (lake) is bado."
    assert (
        shorten("What is the motto of Bala?", document) == IRRELEVANT == shorten("What is the hue of Dora?", document)
    )
    assert shorten("What is there to know about Bala (town)?", document) == IRRELEVANT


# ------------------------------------------------------------------------------------------------------- items, experiment


def world_data(folder, task, seeds=(3,)):
    parameters = {"worlds": list(seeds)}
    spec = {"source": "world", "generator": "passages", "splits": {"train": 150 * len(seeds)}, "parameters": parameters}
    sources.materialize(spec, folder / "facts")
    questions = {
        "kind": "cited_qa",
        "source": "world",
        "task": task,
        "worlds": list(seeds),
        "questions": 6,
        "num_names": 10,
    }
    sources.materialize(questions, folder / "questions")
    build_index(folder / "facts", {"backend": "bm25"}, folder / "bm25", state_dir=folder / "state")
    return {name: folder / name for name in ("facts", "questions", "bm25")}


def test_official_files_become_items_and_faults_are_named(tmp_path):
    world_data(tmp_path, "asqa", (3, 4))
    items = load_items(tmp_path / "questions", 4)
    assert len(items) == 6 and len(load_items(tmp_path / "questions")) == 12
    with pytest.raises(InputError, match="worlds"):
        load_items(tmp_path / "questions", 5)
    (tmp_path / "file.json").write_text(json.dumps({"args": {}, "data": items}))
    local = {"kind": "cited_qa", "source": "local", "task": "asqa", "file": str(tmp_path / "file.json"), "limit": 4}
    sources.materialize(local, tmp_path / "local")
    kept = load_items(tmp_path / "local", 99)
    assert len(kept) == 4 and all(item["qa_pairs"] for item in kept)
    for change in ({"task": "eli5"}, {"file": str(tmp_path / "none.json")}, {"limit": 0}, {"task": "x"}):
        with pytest.raises(InputError):
            sources.materialize({**local, **change}, tmp_path / "bad")


def spec_of(systems):
    recipe = {"num_train_steps": 3, "learning_rate": 1e-2, **CONSTANT}
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 30}
    judged = {"num_train_steps": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-2}
    return {
        "questions": "questions",
        "passages": "facts",
        "retrievers": {
            "bm25": {"source": "index", "index": "bm25"},
            "dense": {"source": "encoder"},
            "oracle": {"source": "oracle", "of": "dense"},
        },
        "encoder": {"source": "scratch", "hidden_size": 8, "pairs": 8, "temperature": 0.1, "recipe": recipe},
        "generator": {"source": "scratch", "training": {"episodes": 8, "recipe": recipe}, "sampling": sampling},
        "closed_book": {
            "source": "scratch",
            "training": {"facts": 8, "popularity": 1.0, "recipe": recipe},
            "sampling": sampling,
        },
        "judge": {
            "source": "scratch",
            "tasks": ["asqa"],
            "worlds": 1,
            "pairs": 24,
            "num_names": 10,
            "num_types": 3,
            "validation_pairs": 20,
            "config": {"hidden_size": 8},
            "training": judged,
        },
        "systems": systems,
        "measures": ["correctness", "citations"],
    }


ALL = [
    {"system": [name for name in SYSTEMS if name != "vanilla"], "retriever": "dense", "shot": 1, "samples": 2},
    {"system": "vanilla", "retriever": ["bm25", "dense", "oracle"], "shot": 1, "samples": 2},
]


def test_every_system_runs_and_a_stopped_run_gives_the_same(tmp_path, monkeypatch):
    data = world_data(tmp_path, "asqa")
    whole = run(spec_of(ALL), 3, data=data, state_dir=tmp_path / "a")
    from reclaim.alce import systems

    original, calls = systems.Desk._write, []

    def dying(self, *arguments):
        calls.append(arguments[2:])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(systems.Desk, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        run(spec_of(ALL), 3, data=data, state_dir=tmp_path / "b")
    again = run(spec_of(ALL), 3, data=data, state_dir=tmp_path / "b")
    for name in ("metrics", "items", "predictions"):
        pd.testing.assert_frame_equal(whole[name], again[name])
    assert whole["pictures"] == again["pictures"]
    predictions = whole["predictions"]
    assert set(predictions["system"]) == set(SYSTEMS)
    answers = predictions[(predictions["system"] == "vanilla") & (predictions["retriever"] == "dense")]
    candidates = answers.groupby("item")["output"].agg(set)
    for name in ("rerank", "rerank_exact", "random_pick"):
        chosen = predictions[predictions["system"] == name].set_index("item")["output"]
        assert all(chosen[item] in candidates[item] for item in chosen.index)
    shuffled = predictions[predictions["system"] == "shuffled"]["output"].tolist()
    for before, after in zip(answers["output"], shuffled, strict=True):
        assert before == after or ("[" in before and before.count("[") == after.count("["))
    variants = whole["metrics"]["variant"].map(lambda variant: (variant.get("judge"), variant.get("scoring")))
    assert {("model", "legacy"), ("model", "strict"), ("exact", "legacy"), ("exact", "strict")} <= set(variants)


def test_seeds_have_their_own_world_models_and_answers(tmp_path):
    data = world_data(tmp_path, "asqa", (3, 4))
    systems = [{"system": "vanilla", "retriever": "dense", "shot": 0}]
    found = [run(spec_of(systems), seed, data=data, state_dir=tmp_path / str(seed))["predictions"] for seed in (3, 4)]
    assert set(found[0]["item"]).isdisjoint(found[1]["item"])
    torch.manual_seed(0)
    repeated = run(spec_of(systems), 3, data=data, state_dir=tmp_path / "again")["predictions"]
    pd.testing.assert_frame_equal(found[0], repeated)


def test_answers_are_read_and_their_fluency_is_measured_by_models(tmp_path):
    from transformers import RobertaConfig, RobertaForQuestionAnswering

    data = world_data(tmp_path, "asqa")
    tokenizer = train_tokenizer("roberta", ["What is the attr of name? It is a value."], 300)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = RobertaConfig(vocab_size=model_vocab_size(tokenizer), max_position_embeddings=520, **small)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 512}
    made = {"qa": RobertaForQuestionAnswering(config), "gpt2": build("gpt2", tokenizer, sizes, 0)}
    for name, model in made.items():
        data[name] = tmp_path / name
        model.save_pretrained(data[name])
        tokenizer.save_pretrained(data[name])
    systems = [{"system": "vanilla", "retriever": "dense", "shot": 0}]
    spec = spec_of(systems) | {"measures": ["correctness", "qa", "mauve"]}
    plain = run(spec, 3, data=data, state_dir=tmp_path / "plain")["metrics"].set_index("metric")
    more = {"reader": {"model": "qa"}, "fluency": {"model": "gpt2"}}
    found = run(spec | more, 3, data=data, state_dir=tmp_path / "more")["metrics"].set_index("metric")
    assert {"qa_em", "qa_f1", "qa_hit"} <= set(found.index) - set(plain.index)
    assert found.loc["mauve", "value"] != plain.loc["mauve", "value"]
    assert not any("generator" in variant for variant in found["variant"])
    load(data["gpt2"], "causal").save_pretrained(tmp_path / "no head")
    tokenizer.save_pretrained(tmp_path / "no head")
    with pytest.raises(InputError, match="no weights for qa_outputs"):
        load_reader(tmp_path / "no head")


def test_a_model_of_the_hub_reads_official_prompts_and_stands_in_the_report_by_its_name(tmp_path):
    data = world_data(tmp_path, "asqa")
    own = load_prompts("asqa", "default", demos=world_demos("asqa", "default", num_names=10))
    (tmp_path / "official").mkdir()
    (tmp_path / "official" / "asqa_default.json").write_text(json.dumps(vars(own)))
    sources.materialize(
        {"kind": "prompt_files", "source": "local", "path": str(tmp_path / "official")}, tmp_path / "prompts"
    )
    for part in (build_pointer(TOKENIZER, 1, LANGUAGE), TOKENIZER):
        part.save_pretrained(tmp_path / "hub")
    data |= {"prompts": tmp_path / "prompts", "pointer-13b": tmp_path / "hub"}
    generator = {"source": "model", "model": "pointer-13b", "sampling": {"temperature": 0, "max_new_tokens": 30}}
    systems = [{"system": ["vanilla", "top_passage"], "retriever": "dense", "shot": 1, "ndoc": [1, 5]}]
    spec = spec_of(systems) | {"generator": generator, "prompts": "prompts"}
    outcome = run(spec, 3, data=data, state_dir=tmp_path / "state")
    without = {key: value for key, value in spec.items() if key != "prompts"}
    plain = run(without, 3, data=data, state_dir=tmp_path / "plain")
    pd.testing.assert_frame_equal(outcome["predictions"], plain["predictions"])
    with pytest.raises(InputError, match="prompts.*'mine'"):
        run(spec | {"prompts": "mine"}, 3, data=data, state_dir=tmp_path / "none")
    key = {"paper": "alce", "experiment": "asqa_pointer", "seed": 3, "stage": "alce", "job": "j"}
    write_outcome({name: value for name, value in outcome.items() if name != "costs"}, tmp_path / "out", **key)
    empty = pd.DataFrame()
    tables = SystemTables(empty, read_outcomes([tmp_path / "out"], "metrics"), empty, empty)
    found = {exhibit.key: exhibit for exhibit in SYSTEM.exhibits(tables)}
    assert {"citations-asqa_pointer", "correctness-asqa_pointer"} <= set(found) and found["retrieval"].rows
    assert all("pointer-13b" in row[0] for row in found["correctness-asqa_pointer"].rows)
    assert len(found["values"].rows) == 4 * 2 * 2


def test_a_text_is_its_last_token_whatever_stands_beside_it(tmp_path):
    tokenizer = train_tokenizer("roberta", ["the cat sat on the mat"])
    model = build("gpt2", tokenizer, {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32}, 0)
    encode = TextEncoder(model.base_model, tokenizer, pooling="last", normalize=False)
    texts = ["the cat", "the mat sat on the cat", "on"]
    together, alone = encode(texts), np.concatenate([encode([text]) for text in texts])
    ids = torch.tensor([tokenizer(texts[1])["input_ids"]])
    hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
    assert np.allclose(together, alone, atol=1e-6) and np.allclose(together[1], hidden.detach(), atol=1e-6)
