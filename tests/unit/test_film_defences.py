"""FILM's defences, the attackers made for them, and the experiment that sets attack against utility."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import reclaim.torchvision_shim  # noqa: F401
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from reclaim import data
from reclaim.errors import InputError
from reclaim.film import defences_experiment, rivals
from reclaim.film.attackers import Knowledge, eavesdrop, true_bag
from reclaim.film.clients import client_tokenizer, token_rows
from reclaim.film.defences import Defence, epsilon, prune, sent_gradients, sentence_gradients, train_client
from reclaim.film.gradients import client_gradient, client_loss, padded
from reclaim.film.scalars import (
    average_scalars,
    candidate_scalars,
    direction,
    draw_average,
    pick_candidate,
    scalars_needed,
    send_scalars,
)
from reclaim.film.span import CUTS, first_layer_gradient, span_bag, span_basis, span_residuals, span_sentence
from reclaim.film.switch_over import batch_with_inputs, sentence_losses
from reclaim.optim import MeZO
from reclaim.report.figures_film_defences import defence_exhibits
from reclaim.report.system import SystemTables
from reclaim.tables import variant_json
from reclaim.tokenization import model_vocab_size

WORDS = (
    "the a cat dog bird tree house saw met found near under big small old red green and then left . one two six".split()
)
EMBEDDING = "transformer.wte.weight"


def sentences(count, seed=0):
    rng = np.random.default_rng(seed)
    body = [word for word in WORDS if word != "."]
    return [" ".join(["The", *rng.choice(body, rng.integers(3, 7)), "."]) for _ in range(count)]


TEXTS = sentences(60)
TOKENIZER = client_tokenizer(TEXTS)


def make_model(width=16, seed=0):
    torch.manual_seed(seed)
    sizes = {"n_layer": 2, "n_embd": width, "n_head": 2, "n_positions": 16}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=model_vocab_size(TOKENIZER), bos_token_id=0, eos_token_id=0, **sizes, **dropout)
    ).eval()


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def known(model):
    return Knowledge.of(model, TOKENIZER, TEXTS[-8:], 10)


def noise(seed=0):
    return torch.Generator().manual_seed(seed)


# ----------------------------------------------------------------------------------------------------- the defences


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.77, 0.999])
def test_pruning_zeroes_what_is_strictly_below_the_quantile(ratio):
    gradient = torch.randn(37, 11, generator=noise())
    expected = torch.where(gradient.abs() < torch.quantile(gradient.abs(), ratio), 0, gradient)
    assert torch.equal(prune(gradient, ratio), expected)


def test_pruning_keeps_ties_at_the_threshold():
    assert prune(torch.ones(10), 0.9).sum() == 10


def test_a_sentence_has_the_gradient_of_a_batch_of_its_own(model):
    ids, mask = padded(model, TOKENIZER, TEXTS[:5])
    parts = list(sentence_gradients(model, ids, mask, chunk=2))
    for place, text in enumerate(TEXTS[:5]):
        alone = client_gradient(model, *padded(model, TOKENIZER, [text])).gradients
        for name, expected in alone.items():
            assert torch.allclose(parts[place // 2][name][place % 2], expected, atol=1e-6), name


def test_private_gradients_are_clipped_means_with_the_stated_noise(model):
    ids, mask = padded(model, TOKENIZER, TEXTS[:4])
    each = next(sentence_gradients(model, ids, mask))
    loose = sent_gradients(model, ids, mask, Defence("dp", 0.0, max_grad_norm=1e6), noise())
    assert torch.allclose(loose[EMBEDDING], each[EMBEDDING].mean(0), atol=1e-6)
    norm = 0.01
    clipped = sent_gradients(model, ids, mask, Defence("dp", 0.0, max_grad_norm=norm), noise())
    assert math.sqrt(sum(float(part.square().sum()) for part in clipped.values())) <= norm * (1 + 1e-5)
    noisy = sent_gradients(model, ids, mask, Defence("dp", 3.0, max_grad_norm=norm), noise(1))
    spread = (noisy[EMBEDDING] - clipped[EMBEDDING]).std()
    assert float(spread) == pytest.approx(3.0 * norm / 4, rel=0.1)
    again = sent_gradients(model, ids, mask, Defence("dp", 3.0, max_grad_norm=norm), noise(1))
    assert torch.equal(again[EMBEDDING], noisy[EMBEDDING])


def test_epsilon_of_one_whole_batch_is_that_of_the_gaussian_mechanism():
    orders = np.arange(1.1, 64, 0.1)
    delta, sigma = 1e-3, 2.0
    closed = orders / (2 * sigma**2) + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    assert epsilon(sigma, 1.0, 1, delta) == pytest.approx(closed.min(), rel=0.01)
    assert epsilon(1.0, 0.1, 50, delta) > epsilon(2.0, 0.1, 50, delta) > epsilon(2.0, 0.1, 10, delta)
    with pytest.raises(InputError, match="noise_multiplier"):
        epsilon(0.0, 0.1, 1, delta)


def test_wrong_defences_are_refused():
    for name, strength in (("pruning", 0.1), ("prune", 1.0), ("dp", -1), ("lora", 0.5), ("mezo", 0)):
        with pytest.raises(InputError):
            Defence(name, strength)


def test_frozen_embeddings_are_neither_sent_nor_trained():
    defence, client = Defence("freeze"), make_model()
    before = client.transformer.wte.weight.detach().clone()
    defence.protect(client, 0)
    assert EMBEDDING not in sent_gradients(client, *padded(client, TOKENIZER, TEXTS[:2]), defence, noise())
    recipe = {"num_train_epochs": 1, "per_device_train_batch_size": 20, "learning_rate": 1e-2}
    train_client(client, token_rows(TOKENIZER, TEXTS), recipe, defence, seed=0)
    assert torch.equal(client.transformer.wte.weight, before)
    assert not torch.equal(client.transformer.h[0].ln_1.weight, make_model().transformer.h[0].ln_1.weight)


def test_what_is_sent_is_what_is_trained_on():
    recipe = {"num_train_epochs": 2, "per_device_train_batch_size": 20, "learning_rate": 1e-2}
    rows, trained = token_rows(TOKENIZER, TEXTS), {}
    for defence in (Defence(), Defence("prune", 0.0), Defence("prune", 0.99), Defence("dp", 10.0), Defence("mezo", 2)):
        client = make_model()
        train_client(defence.protect(client, 0), rows, recipe, defence, seed=0)
        trained[defence.name, defence.strength] = client.transformer.wte.weight.detach()
    assert torch.equal(trained["none", 0.0], trained["prune", 0.0])
    kinds = [weight for key, weight in trained.items() if key != ("prune", 0.0)]
    assert all(not torch.equal(a, b) for i, a in enumerate(kinds) for b in kinds[:i])


# ----------------------------------------------------------------------------------------------------- the span test


def read_by_span(client, defence, texts, known):
    return set(eavesdrop(client, defence, texts, known, seed=0)["strongest"])


def test_frozen_embeddings_give_the_bag_below_the_width_and_nothing_above(model, known):
    client, width = Defence("freeze").protect(make_model(), 0), model.config.n_embd
    inputs = [set(enumerate(row[:-1])) for row in TOKENIZER(TEXTS)["input_ids"]]
    rng = np.random.default_rng(0)
    for ratio, few in ((0.75, True), (1.5, False)):
        batch = [TEXTS[place] for place in batch_with_inputs(inputs, round(ratio * width), rng)]
        bag = read_by_span(client, Defence("freeze"), batch, known)
        if few:
            assert bag == true_bag(model, TOKENIZER, batch)
        else:
            assert len(bag) == model.config.vocab_size


def test_the_bag_follows_the_gradient_and_not_the_batch(known):
    client, defence = Defence("freeze").protect(make_model(), 0), Defence("freeze")
    first, second = (read_by_span(client, defence, [text], known) for text in TEXTS[:2])
    assert first != second
    sent = sent_gradients(client, *padded(client, TOKENIZER, TEXTS[1:2]), defence, noise())
    residuals = span_residuals(known.model, span_basis(first_layer_gradient(sent)), 9)
    assert span_bag(residuals, CUTS[torch.float32]) | set(known.ends) == second


def test_one_sentence_is_read_in_order(model):
    defence, client = Defence("freeze"), Defence("freeze").protect(make_model(), 0)
    ids, mask = padded(client, TOKENIZER, TEXTS[3:4])
    basis = span_basis(first_layer_gradient(sent_gradients(client, ids, mask, defence, noise())))
    assert span_sentence(span_residuals(model, basis, 12), CUTS[torch.float32]) == ids[0, :-1].tolist()


@pytest.mark.parametrize(("r", "leaks"), [(12, True), (3, False)])
def test_lora_leaks_below_its_rank_only(model, known, r, leaks):
    defence = Defence("lora", r)
    client = defence.protect(make_model(), 1)
    bag = read_by_span(client, defence, [TEXTS[0]], known)
    assert (bag == true_bag(model, TOKENIZER, [TEXTS[0]])) == leaks
    assert leaks or len(bag) == model.config.vocab_size


def test_words_in_chunks_have_the_same_residuals(model):
    basis = torch.linalg.qr(torch.randn(16, 5, generator=noise(), dtype=torch.float64))[0].T
    assert torch.equal(span_residuals(model, basis, 6), span_residuals(model, basis, 6, chunk=7))
    with pytest.raises(InputError, match="num_positions"):
        span_residuals(model, basis, 17)


def test_without_an_attention_gradient_there_is_no_span():
    with pytest.raises(InputError, match="span test"):
        first_layer_gradient({EMBEDDING: torch.zeros(2, 2)})


def test_film_is_left_with_the_vocabulary_where_no_embedding_gradient_is_sent(model, known):
    for defence in (Defence("freeze"), Defence("lora", 3), Defence("mezo", 1)):
        bags = eavesdrop(defence.protect(make_model(), 0), defence, TEXTS[:2], known, seed=0)
        assert bags["film"] == list(range(model.config.vocab_size)), defence.name


# ----------------------------------------------------------------------------------------------------------- scalars


def test_scalars_are_derivatives_along_directions_that_anybody_can_draw(model):
    ids, mask = padded(model, TOKENIZER, TEXTS[:2])
    gradients = client_gradient(model, ids, mask).gradients
    before = copy.deepcopy(model.state_dict())
    messages = send_scalars(model, lambda: client_loss(model, ids, mask)[0], 4, seed=3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    norm = math.sqrt(sum(float(part.square().sum()) for part in gradients.values()))
    for message in messages:
        along = sum(float((z * gradients[name]).sum()) for name, z in direction(model, message.seed))
        assert abs(message.projected_grad - along) < 0.02 * norm


def test_directions_are_those_that_mezo_descends_along():
    client, start = make_model(), make_model()
    message = send_scalars(client, lambda: client_loss(client, *padded(client, TOKENIZER, TEXTS[:1]))[0], 1, seed=5)[0]
    optimizer = MeZO(client, 0.1, direction_seeds=[message.seed])
    optimizer.replay([message.projected_grad])
    for name, z in direction(start, message.seed):
        moved = client.get_parameter(name) - start.get_parameter(name)
        assert torch.allclose(moved, -0.1 * message.projected_grad * z, atol=1e-5), name


def test_the_mean_of_scalars_has_the_distribution_that_is_drawn(model):
    ids, mask = padded(model, TOKENIZER, TEXTS[:1])
    gradients = client_gradient(model, ids, mask).gradients
    wanted, count = gradients[EMBEDDING], 20
    full = sum(float(part.square().sum()) for part in gradients.values())

    def check(estimates, square):
        """Unbiased, with a variance of |gradient|^2 / K a coordinate."""
        estimates = torch.stack(estimates)
        along = (estimates * wanted).sum((1, 2)).mean() / wanted.square().sum()
        assert float(along) == pytest.approx(square / full, abs=0.25)
        assert float((estimates - wanted).square().mean()) == pytest.approx(square / count, rel=0.1)

    check([draw_average(gradients, EMBEDDING, count, noise(repeat)) for repeat in range(200)], full)
    # Of scalars that were sent, few can be had here: what their squares happen to sum to takes the gradient's place.
    sent = [send_scalars(model, lambda: client_loss(model, ids, mask)[0], count, seed=repeat) for repeat in range(15)]
    own = np.mean([message.projected_grad**2 for messages in sent for message in messages])
    check([average_scalars(model, messages, EMBEDDING) for messages in sent], own)


def test_the_rule_of_thumb_counts_dimensions_and_norms():
    gradients = {"words": torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 5.0]]), "rest": torch.tensor([math.sqrt(50.0)])}
    assert scalars_needed(gradients, "words", [0, 2]) == pytest.approx(2 * 100 / 25)


def test_average_needs_messages_and_a_known_parameter(model):
    with pytest.raises(InputError, match="message"):
        average_scalars(model, [], EMBEDDING)
    messages = send_scalars(model, lambda: client_loss(model, *padded(model, TOKENIZER, TEXTS[:1]))[0], 1, seed=0)
    with pytest.raises(InputError, match="name"):
        average_scalars(model, messages, "no.such.weight")


def test_one_scalar_picks_the_sentence_among_candidates(model):
    texts = list(dict.fromkeys(TEXTS))[:30]
    ids, mask = padded(model, TOKENIZER, texts)
    for place in (0, 7, 19):
        own = padded(model, TOKENIZER, texts[place : place + 1])
        (message,) = send_scalars(model, lambda own=own: client_loss(model, *own)[0], 1, seed=place)
        scalars = candidate_scalars(model, lambda exact: sentence_losses(exact, ids, mask), message.seed)
        assert pick_candidate(message, scalars) == place


# ------------------------------------------------------------------------------------------------------------ rivals


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_gradient_matching_comes_nearer_to_the_gradient(model, name):
    ids, mask = padded(model, TOKENIZER, TEXTS[:1])
    gradients = client_gradient(model, ids, mask).gradients
    settings = rivals.Matching(
        **{**vars(rivals.RIVALS[name]), "num_steps": 30, "learning_rate": 0.05, "num_starts": 2, "num_moves": 4},
    )
    search = rivals._Search(model, gradients, settings)
    start = search.start(ids.shape[1], noise())
    before = float(search.objective(*start).detach())
    with rivals.sdpa_kernel(rivals.SDPBackend.MATH):
        optimizer = torch.optim.Adam(start, lr=0.05)
        for _ in range(30):
            optimizer.zero_grad()
            search.objective(*start, create_graph=True).backward(inputs=list(start))
            optimizer.step()
    assert float(search.objective(*start).detach()) < before
    found = rivals.match_gradient(model, gradients, ids.shape[1], settings, noise())
    assert len(found) == ids.shape[1] and max(found) < model.config.vocab_size
    assert found == rivals.match_gradient(model, gradients, ids.shape[1], settings, noise())


def test_moves_keep_every_token():
    generator = noise()
    moves = [rivals._random_move(7, generator) for _ in range(200)]
    assert all(sorted(move) == list(range(7)) for move in moves)
    assert len({tuple(move) for move in moves}) > 30


def test_matching_refuses_what_it_cannot_do(model):
    with pytest.raises(InputError, match="distance"):
        rivals.Matching("l3", 1, 0.1)
    with pytest.raises(InputError, match="length"):
        rivals.match_gradient(model, {}, 1, rivals.RIVALS["dlg"], noise())


# --------------------------------------------------------------------------------------------------- the experiment


def test_batches_have_the_number_of_inputs_asked_for():
    inputs = [{(0, 1), (1, 2), (2, 3)}, {(0, 1), (1, 5), (2, 3)}, {(0, 9), (1, 8), (2, 7), (3, 6)}]
    for total in (3, 4, 7, 8):
        chosen = batch_with_inputs(inputs, total, np.random.default_rng(0))
        assert len(set().union(*(inputs[place] for place in chosen))) == total
    with pytest.raises(InputError, match="different inputs"):
        batch_with_inputs(inputs, 30, np.random.default_rng(0), tries=5)


def test_gain_is_the_share_of_the_fall_without_a_defence():
    rows = [
        {"variant": {"defence": name, "strength": strength}, "metric": "heldout_loss", "value": value}
        for name, strength, value in (("untrained", 0, 5.0), ("none", 0, 3.0), ("prune", 0.9, 3.5), ("dp", 1.0, 5.5))
    ]
    found = {row["variant"]["defence"]: row["value"] for row in defences_experiment.gains(rows)}
    assert found == pytest.approx({"none": 1.0, "prune": 0.75, "dp": -0.25})


SPEC = {
    "public": {"data": "public", "rows": 60},
    "private": {"data": "private", "rows": 8, "held_out_rows": 8},
    "domain": {"data": "letters", "rows": 16, "held_out_rows": 8, "known": {"data": "known", "rows": 4}},
    "model": {
        "source": "scratch",
        "config": {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 20},
        "recipe": {"num_train_epochs": 1, "per_device_train_batch_size": 16, "learning_rate": 1e-3},
    },
    "client": {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-3},
    "defences": [{"defence": "none"}, {"defence": "dp", "strength": [0.1]}, {"defence": "mezo", "strength": 1}],
    "attack": {"batch_size": 2, "batches": 1, "num_beams": 2, "max_length": 16},
    "training": {"recipe": {"num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-3}},
    "span": {"defences": [{"defence": "freeze"}], "ratios": [1.0], "batches": 1, "sentences": 1},
    "average": {"batch_sizes": [1], "batches": 1, "messages": [1], "law": [64], "ratios": [1]},
    "candidates": {"candidates": 4, "trials": 1},
    "rivals": {"sentences": 1, "methods": {"dlg": {"num_steps": 2}}},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, parameters in (
        ("public", {"part": "public"}),
        ("private", {"part": "private"}),
        ("letters", {"part": "private", "domain": "letter"}),
        ("known", {"part": "public", "domain": "letter"}),
    ):
        made[name] = tmp_path_factory.mktemp("data") / name
        spec = {"source": "world", "generator": "clients_corpus", "seed": 0, "splits": {"train": 80}}
        data.materialize({**spec, "parameters": parameters}, made[name])
    return made


def system_tables(metrics, experiment="defences"):
    keyed = metrics.assign(paper="film", experiment=experiment, seed=5, variant=metrics["variant"].map(variant_json))
    return SystemTables(pd.DataFrame(), keyed, pd.DataFrame(), pd.DataFrame())


def test_a_private_sentence_in_any_public_text_stops_the_run(folders, tmp_path):
    spec = {**SPEC, "domain": {**SPEC["domain"], "known": {"data": "private", "rows": 80}}}
    with pytest.raises(InputError, match="none of the private sentences"):
        defences_experiment.run(spec, 5, data=folders, state_dir=tmp_path)


def test_a_run_without_the_experiment_says_so():
    nothing = pd.DataFrame()
    (exhibit,) = defence_exhibits(SystemTables(nothing, nothing, nothing, nothing))
    assert exhibit.missing


def test_a_run_that_was_stopped_ends_in_the_same_tables(folders, tmp_path):
    whole = defences_experiment.run(SPEC, 5, data=folders, state_dir=tmp_path)
    for part in ("utility dp 0.1", "attack mezo 1", "average"):
        (tmp_path / f"{part}.json").unlink()
    resumed = defences_experiment.run(SPEC, 5, data=folders, state_dir=tmp_path)
    for table in ("metrics", "items"):
        assert whole[table].to_json() == resumed[table].to_json()
    metrics = whole["metrics"]
    assert {"bag_f1", "excess_rouge_L", "gain_kept", "epsilon", "picked", "scalar_gap"} <= set(metrics["metric"])
    assert np.isfinite(metrics["value"]).all()
    exhibits = defence_exhibits(system_tables(metrics))
    assert [exhibit.key for exhibit in exhibits] == ["defences", "span", "scalars", "candidates", "rivals"]
    for exhibit in exhibits:
        assert exhibit.rows and all(len(row) == len(exhibit.columns) for row in exhibit.rows), exhibit.key
    assert [row[0] for row in exhibits[0].rows] == ["none", "DP-SGD, σ 0.1", "MeZO, scalars 1"]
    of_paper = defence_exhibits(system_tables(metrics, "wikitext_defences"))
    assert len(of_paper) == 5 and all("GPT-2 on WikiText-103" in exhibit.title for exhibit in of_paper)
    assert not {exhibit.key for exhibit in of_paper} & {exhibit.key for exhibit in exhibits}
    unknown = defences_experiment.run({**SPEC, "defences": SPEC["defences"][:1]}, 6, data=folders, state_dir=tmp_path)
    assert not (tmp_path / "attack mezo 1.json").exists() and len(unknown["metrics"])
