"""FILM's attack: bags follow the gradient, searches agree with slow ones, halves share nothing, runs resume to equal tables."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest
import reclaim.torchvision_shim  # noqa: F401
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from reclaim import data, tables
from reclaim.errors import InputError
from reclaim.film import attack, bag, clients, experiment, gradients, reorder, search, start_search
from reclaim.film.reorder_scores import reorder_scores
from reclaim.film.texts import client_texts, draw_batches, sentences_of
from reclaim.metrics import recovery
from reclaim.report.figures_film import SYSTEM
from reclaim.report.system import SystemTables
from reclaim.tokenization import model_vocab_size
from reclaim.world import generators
from reclaim.world.clients import part_of

torch.set_num_threads(1)
TEXTS = generators.generate("clients_corpus", {"train": 40}, 0)["train"]["text"].tolist()
TOKENIZER = clients.client_tokenizer(TEXTS)


def small_model(tied: bool = False, seed: int = 0, scale: float = 0.3, vocab_size: int | None = None):
    torch.manual_seed(seed)
    size = vocab_size or model_vocab_size(TOKENIZER)
    config = GPT2Config(
        vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=scale, tie_word_embeddings=tied,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def ids_of(texts):
    return {token for ids in TOKENIZER(list(texts))["input_ids"] for token in ids}


# ------------------------------------------------------------------------------------------------------------ text and bags


def test_parts_of_the_world_share_no_sentence_but_all_words():
    public = generators.generate("clients_corpus", {"train": 2000}, 0)["train"]
    private = generators.generate("clients_corpus", {"train": 400}, 0, part="private")["train"]
    assert not set(public["text"]) & set(private["text"])
    assert {part_of(text) for text in private["text"]} == {"private"}
    unknown = {word for text in private["text"] for word in text.split()} - set(" ".join(public["text"]).split())
    assert len(unknown) < 60  # rare words only: the public model knows the others
    assert all(
        set(names) <= set(text.split()) and len(names)
        for text, names in zip(private["text"], private["names"], strict=True)
    )
    with pytest.raises(InputError, match="part"):
        generators.generate("clients_corpus", {"train": 4}, 0, part="secret")


def test_a_word_at_the_start_has_a_token_of_its_own():
    ids = TOKENIZER("On Monday , this pidan kolas On .")["input_ids"]
    assert ids[0] != ids[6] and TOKENIZER.decode(ids[:1]) == "On" and TOKENIZER.decode(ids[6:7]) == " On"
    with pytest.raises(InputError, match="capital"):
        clients.client_tokenizer(["zneb a", "neb a", "zn neb"])


def test_the_bag_follows_the_gradient_and_not_the_batch():
    """A gradient of other sentences gives their bag: nothing else of the batch is looked at."""
    model = small_model()
    observed = attack.observe(model, TOKENIZER, TEXTS[:3])
    attacker = attack.Attacker.of(model, TOKENIZER, search.SearchOptions(12, 4, 2), TEXTS[:8])
    forged = attack.Observed(
        attack.observe(model, TOKENIZER, TEXTS[5:7]).words, observed.num_targets, 3, observed.truth
    )
    assert set(observed.bag({"rule": "nonzero"}, attacker)) == ids_of(TEXTS[:3])
    assert set(forged.bag({"rule": "nonzero"}, attacker)) == ids_of(TEXTS[5:7])


def test_pads_and_unused_targets_leave_no_trace():
    """The longest sentence's last token and all padding are inputs without target."""
    model = small_model()
    ids, mask = gradients.padded(model, TOKENIZER, ["On Monday , this pidan kolas .", "On Monday ."])
    sent = gradients.client_gradient(model, ids, mask)
    word_name, position_name = gradients.embedding_names(model)
    ends = TOKENIZER(" .")["input_ids"]
    assert not set(bag.nonzero_rows(sent.gradients[word_name])) & {TOKENIZER.eos_token_id, *ends}
    assert bag.longest_input(sent.gradients[position_name]) == 5
    assert sent.num_targets == 6 + 2


def test_a_tied_head_hides_the_bag_from_the_non_zero_test_only():
    model = small_model(tied=True, scale=0.05)
    assert gradients.is_tied(model) and not gradients.is_tied(small_model())
    observed = attack.observe(model, TOKENIZER, TEXTS[:2])
    attacker = attack.Attacker.of(model, TOKENIZER, search.SearchOptions(12, 4, 2), TEXTS[:8])
    assert len(observed.bag({"rule": "nonzero"}, attacker)) == model.config.vocab_size
    found = observed.bag({"rule": "scaled", "k": 0.35, "starts": True}, attacker)
    assert recovery.bag_scores(observed.truth, found)["bag_f1"] > 0.8
    assert observed.bag({"rule": "scaled", "k": 1e9}, attacker) == []


def test_standing_out_and_gap_cut_at_the_largest_gap():
    norms = torch.tensor([0.1, 5.0, 0.1, 4.0, 0.11, 6.0])
    assert bag.gap_rows(norms, 4) == [1, 3, 5]
    assert bag.standing_out(norms, [0, 1, 2, 4], 3) == [1]
    assert bag.standing_out(torch.zeros(6), [2], 3) == [2]


# ----------------------------------------------------------------------------------------------------------------- searches


def test_random_controls_take_their_words_from_the_bag_and_one_of_them_looks_like_a_sentence():
    attacker = attack.Attacker.of(small_model(), TOKENIZER, search.SearchOptions(9, 4, 2), TEXTS[:8])
    words = sorted(ids_of(TEXTS[:2]))
    drawn = [attacker.random_words(words, np.random.default_rng(seed))[0] for seed in range(60)]
    framed = [attacker.random_sentence(words, np.random.default_rng(seed))[0] for seed in range(60)]
    known = set(" ".join(TEXTS[:2]).split())
    for text in drawn + framed:
        # (a start token has no space before it)
        found = re.findall("[A-Z]?[a-z]+|[.,]", text)
        assert set(found) <= known and len(found) <= 9 and "." not in found[:-1]
    assert all(text[0].isupper() and text.endswith(".") and len(text.split()) == 9 for text in framed)
    assert len({len(text.split()) for text in drawn}) > 3 and not all(text.strip()[0].isupper() for text in drawn)
    assert any(len(set(text.split())) < len(text.split()) for text in drawn)
    assert attacker.random_words([], np.random.default_rng(0)) == []


def log_probs(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)


def test_official_search_finds_the_best_sequence_when_the_beam_is_wide():
    # Every token is in the bag: where fewer candidates are allowed than there are beams, the official search takes others.
    model, words = small_model(vocab_size=5), [0, 1, 2, 3, 4]
    options = search.SearchOptions(max_length=4, num_beams=125, num_groups=1)
    (found,) = search.official_search(model, dict.fromkeys(words, 4), [3], 4, options)
    totals = {}
    for rest in itertools.product(words, repeat=3):
        tokens = [3, *rest]
        totals[tuple(tokens)] = sum(float(log_probs(model, tokens[:n])[tokens[n]]) for n in range(1, 4))
    assert tuple(found.tokens[0]) == max(totals, key=totals.get)
    assert found.log_prob == pytest.approx(max(totals.values()), abs=1e-4)


def test_repetitions_use_no_n_gram_twice():
    model, words = small_model(vocab_size=30), list(range(1, 25))
    options = search.SearchOptions(max_length=6, num_beams=8, num_groups=1, no_repeat_ngram_size=2, repetitions=3)
    found = search.official_search(model, dict.fromkeys(words, 6), [2, 4], 29, options)
    pairs = [pair for each in found for pair in itertools.pairwise(each.tokens[0])]
    assert len(found) == 3 and len(pairs) == len(set(pairs))
    with pytest.raises(InputError, match="repetitions"):
        search.SearchOptions(repetitions=2)


def test_search_from_nothing_gives_nothing():
    model = small_model(vocab_size=12)
    assert search.official_search(model, {}, [1], 11, search.SearchOptions()) == []
    assert search.official_search(model, {1: 1}, [], 11, search.SearchOptions()) == []
    assert start_search.start_search(model, [], [1], [2]) == []


def test_start_search_ranks_ended_sentences_by_their_mean():
    model, words, end = small_model(vocab_size=12), [1, 2, 5], 5
    found = start_search.start_search(model, words, [3, 4], [end], max_length=4, num_beams=50)
    means = {}
    for start in (3, 4):
        for length in (0, 1, 2):
            for inner in itertools.product([1, 2], repeat=length):
                tokens = [start, *inner, end]
                total = sum(float(log_probs(model, tokens[:n])[tokens[n]]) for n in range(1, len(tokens)))
                means[tuple(tokens)] = total / (len(tokens) - 1)
    for start in (3, 4):
        best = max((tokens for tokens in means if tokens[0] == start), key=means.get)
        (mine,) = [each for each in found if each.tokens[0][0] == start]
        assert tuple(mine.tokens[0]) == best and mine.score == pytest.approx(means[best], abs=1e-4)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_start_search_without_an_end_gives_its_best_beam():
    found = start_search.start_search(small_model(vocab_size=12), [1, 2], [3], [5], max_length=4, num_beams=4)
    assert len(found) == 1 and len(found[0].tokens[0]) == 4


# --------------------------------------------------------------------------------------------------------------- reordering


def test_scores_of_many_candidates_are_those_of_each():
    model = small_model(seed=1)
    candidates = [[TEXTS[0]], [TEXTS[1], TEXTS[2]], [""], [TEXTS[3] + " " + " ".join(TEXTS[3].split()[1:])]]
    together = reorder_scores(model, TOKENIZER, candidates, block=0)
    apart = [reorder_scores(model, TOKENIZER, [each], block=0) for each in candidates]
    np.testing.assert_allclose(together.total, [each.total[0] for each in apart], rtol=1e-4)
    assert math.isinf(together.total[2])
    no_norm = reorder_scores(model, TOKENIZER, candidates[:1], gradient=False)
    assert no_norm.total[0] == pytest.approx(no_norm.perplexity[0]) and together.grad_norm[0] > 0


def test_moves_keep_the_words():
    order = (1, 3, 2, 4)
    cuts, gains = reorder.segment_moves(np.random.default_rng(0).normal(size=(6, 6)), order)
    assert len(cuts) == len(gains) == 10
    candidates = np.array([0, 1, 3, 4, 6, 7])
    for each in cuts:
        assert sorted(reorder.moved_places(9, candidates, each, order)) == list(range(9))


def test_reordering_lowers_the_score_and_keeps_the_words():
    model, text = small_model(seed=2), "On pidan , this Monday kolas ."
    options = reorder.ReorderOptions(coarse_steps=6, fine_steps=4, proposals=8, swaps=8)
    found = reorder.reorder(model, TOKENIZER, text, options, np.random.default_rng(0))
    assert found.score < found.stages["start"][1]
    ids = [sorted(TOKENIZER(each)["input_ids"]) for each in (found.text, text)]
    assert ids[0] == ids[1]
    again = reorder.reorder(model, TOKENIZER, text, options, np.random.default_rng(0))
    assert again == found


# ------------------------------------------------------------------------------------------------------------------ metrics


def test_rouge_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    references = ["The hunters were running quickly home .", "a a b", "", TEXTS[0]]
    candidates = ["Running hunter was home", "a b b a", "", TEXTS[1], TEXTS[0]]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    found = recovery.rouge(references, candidates)
    for i, j in itertools.product(range(len(references)), range(len(candidates))):
        expected = scorer.score(references[i], candidates[j])
        for name in recovery.ROUGE:
            for statistic in recovery.STATISTICS:
                assert found[name][statistic][i, j] == pytest.approx(
                    getattr(expected[name.replace("_", "")], statistic)
                )


def test_cut_entities_and_edit_distance():
    assert recovery.cut('He left . Then "so"') == "He left . "
    assert recovery.cut("no mark") == "no mark" and recovery.cut("3.5 km") == "3."
    ruler = recovery.EntityRuler(["York", "New York", "Monday"])
    assert ruler("In New York on Monday , not monday or Yorks") == ["New York", "Monday"]
    assert recovery.entity_f1([], []) == 0.0 and recovery.entity_f1(["a"], ["a", "b"]) == pytest.approx(2 / 3)
    assert recovery.edit_distance("a b c".split(), "a c".split()) == pytest.approx(1 / 3)
    assert recovery.bag_scores([1, 2], [])["bag_precision"] == 0.0


def test_no_candidate_scores_nothing():
    (batch,) = draw_batches(experiment.ClientTexts([], TEXTS[:4], TEXTS[4:8], [], None), 4, 1, 0)
    scores, _ = attack.recovery_scores(batch, [], None)
    assert scores["top1"]["rouge_L"] == 0 and scores["top1"]["edit_distance"] == 1 and scores["all"]["coverage"] == 0


# --------------------------------------------------------------------------------------------------------------- experiment

TINY = {
    "n_layer": 1,
    "n_embd": 16,
    "n_head": 2,
    "n_positions": 24,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
RECIPE = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 3.0e-3}
SPEC = {
    "public": {"data": "public"},
    "private": {"data": "private", "rows": 16, "held_out_rows": 8},
    "models": {
        "untied": {
            "source": "scratch", "config": {**TINY, "tie_word_embeddings": False}, "recipe": RECIPE,
            "bags": [{"rule": "nonzero"}],
        },
        "tied": {
            "source": "scratch", "config": TINY, "recipe": RECIPE,
            "bags": [{"rule": "size"}, {"rule": "scaled", "k": 0.35}],
        },
    },
    "client": {"per_device_train_batch_size": 8, "learning_rate": 3.0e-3},
    "stages": {"public": 0, "memorised": 2},
    "batches": [{"batch_size": 1, "number": 2}, {"batch_size": 4, "number": 1}],
    "search": {"max_length": 8, "num_beams": 4, "num_groups": 2, "no_repeat_ngram_size": 2},
    "arms": [
        {"bag": "recovered", "search": "official"},
        {"bag": "recovered", "search": "per_start"},
        {"bag": "vocabulary", "search": "official"},
        {"bag": "oracle", "search": "random_order"},
        {"bag": "recovered", "search": "random_words"},
    ],
    "iteration": {"stages": ["memorised"], "batch_sizes": [4], "number": 1, "repetitions": [1, 2]},
    "reordering": {
        "stages": ["memorised"], "batch_size": 1, "number": 1, "coarse_steps": 2, "fine_steps": 2, "proposals": 4, "swaps": 4,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("film")
    for part in ("public", "private"):
        spec = {
            "source": "world",
            "generator": "clients_corpus",
            "seed": 0,
            "splits": {"train": 64},
            "parameters": {"part": part},
        }
        data.materialize(spec, root / part)
    return {part: root / part for part in ("public", "private")}


@pytest.fixture(scope="module")
def outcome(folders, tmp_path_factory):
    return experiment.run(SPEC, 5, data=folders, state_dir=tmp_path_factory.mktemp("state"))


def keyed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(paper="film", experiment="attack", seed=5)


def test_rows_are_those_of_the_tables_and_draw_the_section(outcome):
    metrics = tables.validate(keyed(outcome["metrics"])[list(tables.COLUMNS["metrics"])], "metrics", "metrics")
    tables.validate(keyed(outcome["items"])[list(tables.COLUMNS["items"])], "items", "items")
    curves = keyed(outcome["curves"]).assign(
        variant=[tables.variant_json(variant) for variant in outcome["curves"]["variant"]]
    )
    empty = pd.DataFrame(columns=[*tables.COLUMNS["costs"]])
    shown = SYSTEM.exhibits(SystemTables(pd.DataFrame(), metrics, empty, curves))
    by_key = {exhibit.key: exhibit for exhibit in shown}
    assert not [key for key in ("examples", "batch-sizes", "iteration", "reordering", "tied") if by_key[key].missing]
    # The picture's text tells of what is drawn: the official search at each head, stage and size.
    assert by_key["examples"].alt.count("recovered as") == 8
    assert "tied head, text known by heart, batch of 4" in by_key["examples"].alt


def test_the_section_shows_the_paper_overlay_too(outcome):
    metrics = keyed(outcome["metrics"]).assign(experiment="wikitext")
    metrics = metrics[metrics["variant"].str.contains('"model":"tied"')]
    metrics["variant"] = metrics["variant"].str.replace('"model":"tied"', '"model":"gpt2"')
    nothing = pd.DataFrame()
    by_key = {exhibit.key: exhibit for exhibit in SYSTEM.exhibits(SystemTables(nothing, metrics, nothing, nothing))}
    for key in ("examples", "batch-sizes", "excess", "epochs", "iteration", "tied", "losses"):
        assert "gpt2, private" in by_key[key].alt, key


def test_the_prior_starts_as_the_attack_does_at_every_batch_size(folders, monkeypatch, tmp_path):
    """The official search copies start tokens for large batches: a control without the copies would be another search."""
    asked = []
    official = attack.Attacker.official

    def noting(self, bag, batch_size, counts=None):
        asked.append((len(bag), batch_size))
        return official(self, bag, batch_size, counts)

    monkeypatch.setattr(attack.Attacker, "official", noting)
    spec = {key: value for key, value in SPEC.items() if key not in ("iteration", "reordering")}
    spec |= {"models": {"tied": SPEC["models"]["tied"]}, "stages": {"public": 0}, "arms": SPEC["arms"][2:3]}
    experiment.run(spec, 5, data=folders, state_dir=tmp_path)
    assert len({size for size, _ in asked}) == 1 and [size for _, size in asked] == [1, 4]


def test_a_run_that_stopped_goes_on_to_equal_tables(folders, outcome, tmp_path):
    class Stop(Exception):
        pass

    calls = itertools.count()

    def stopping(sequence):
        # The first model's training and its first stage are finished when the next stage is stopped.
        for each in sequence:
            if next(calls) > 24:
                raise Stop
            yield each

    with pytest.raises(Stop):
        experiment.run(SPEC, 5, data=folders, state_dir=tmp_path, progress=stopping)
    assert list(tmp_path.glob("untied.*.rows.parquet"))
    again = experiment.run(SPEC, 5, data=folders, state_dir=tmp_path)
    for table in ("metrics", "items", "curves", "predictions"):
        pd.testing.assert_frame_equal(again[table], outcome[table])


def test_sentences_are_taken_from_longer_texts():
    text = "The first one is here . a piece in lower case . Is this the 3.5 th ? Too short . No mark at its end"
    assert sentences_of(text, 8) == ["The first one is here . a piece in lower case .", "Is this the 3.5 th ?"][1:]
    assert sentences_of(text, 12)[0].startswith("The first")


def test_another_seed_attacks_other_sentences(folders):
    draws = [
        client_texts(folders["public"], folders["private"], seed, private_rows=16, held_out_rows=8)
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] and draws[0].private != draws[2].private
    assert not set(draws[0].attacked) & set(draws[0].decoys) and not set(draws[0].private) & set(draws[0].held_out)
    batches = list(draw_batches(draws[0], 2, 4, 1))
    assert len({text for batch in batches for text in batch.sentences}) == 8
    with pytest.raises(InputError, match="half"):
        list(draw_batches(draws[0], 4, 3, 1))
    with pytest.raises(InputError, match="public"):
        client_texts(folders["private"], folders["private"], 1, private_rows=16, held_out_rows=8)
