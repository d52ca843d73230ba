"""LoRA, prefixes and the head alone: what trains, what stays, and what the model computes."""

import pytest
import reclaim.torchvision_shim  # noqa: F401
import torch
import transformers

from reclaim.adapters import add_lora, add_prefix, train_head_only
from reclaim.errors import InputError
from reclaim.objectives import option_lm_loss
from reclaim.optim import MeZO
from reclaim.optim.trajectory import weights_digest

SIZES = {"vocab_size": 50, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "pad_token_id": 1}


def build(kind, dtype=torch.float32, **options):
    transformers.set_seed(0)
    if kind == "opt":
        config = transformers.OPTConfig(
            **SIZES, word_embed_proj_dim=16, ffn_dim=32, max_position_embeddings=40, init_std=0.2, **options
        )
        return transformers.OPTForCausalLM(config).to(dtype).eval()
    sizes = {**SIZES, "intermediate_size": 32, "max_position_embeddings": 40, "initializer_range": 0.2, **options}
    if kind == "llama":
        config = transformers.LlamaConfig(**sizes, num_key_value_heads=1)
        return transformers.LlamaForCausalLM(config).to(dtype).eval()
    name = {"roberta": "Roberta", "bert": "Bert"}[kind]
    config = getattr(transformers, f"{name}Config")(**sizes)
    return getattr(transformers, f"{name}ForMaskedLM")(config).to(dtype).eval()


IDS = torch.tensor([[1, 1, 2, 10, 11, 12, 13], [2, 20, 21, 22, 23, 24, 25]])
MASK = (IDS != 1).long()
RIGHT = torch.tensor([[0, 10, 11, 3, 2, 1, 1], [0, 20, 21, 22, 3, 24, 2]])


def trained_names(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


def frozen(model):
    return weights_digest((n, p) for n, p in model.named_parameters() if not p.requires_grad)


def logits(model, ids=IDS, mask=MASK):
    # Rotary models need to be told where left-padded rows begin.
    positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if model.can_generate() else {}
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, **positions).logits


# ---------------------------------------------------------------------- LoRA


def test_lora_starts_as_the_base_model_and_adds_the_scaled_product():
    base, model = build("opt"), add_lora(build("opt"), seed=3)
    torch.testing.assert_close(logits(model)[MASK.bool()], logits(base)[MASK.bool()])
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_" in name:
                p.normal_(generator=torch.Generator().manual_seed(len(name)))
        for base_layer, layer in zip(base.model.decoder.layers, model.model.decoder.layers, strict=True):
            for part in ("q_proj", "v_proj"):
                lora = getattr(layer.self_attn, part)
                product = lora.lora_B["default"].weight @ lora.lora_A["default"].weight
                getattr(base_layer.self_attn, part).weight += 16 / 8 * product
    torch.testing.assert_close(logits(model)[MASK.bool()], logits(base)[MASK.bool()], rtol=1e-4, atol=1e-4)


def test_lora_trains_only_itself_in_a_causal_model_and_the_free_head_in_a_masked_one():
    names = trained_names(add_lora(build("opt")))
    assert len(names) == 8 and all(".lora_" in name for name in names)
    names = trained_names(add_lora(build("roberta")))
    assert all(any(part in name for part in (".query.lora_", ".value.lora_", "lm_head.")) for name in names)
    assert "lm_head.dense.weight" in names and not any("word_embeddings" in name for name in names)
    assert not any("lm_head" in name for name in trained_names(add_lora(build("roberta"), train_head=False)))


def test_lora_is_drawn_from_its_seed_and_not_from_the_global_stream():
    first, same, other = (add_lora(build("opt"), seed=seed) for seed in (1, 1, 2))
    start = {n: p for n, p in first.named_parameters() if p.requires_grad}
    for name, p in same.named_parameters():
        assert name not in start or torch.equal(p, start[name])
    assert any(not torch.equal(p, start[n]) for n, p in other.named_parameters() if n in start)
    assert all((p == 0).all() for n, p in start.items() if ".lora_B." in n)
    model = build("opt")
    state = torch.get_rng_state()
    add_lora(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_lora_of_a_half_model_is_float32():
    model = add_lora(build("opt", torch.bfloat16))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16


def test_lora_refuses_layers_that_do_not_exist():
    with pytest.raises(InputError, match="target_modules"):
        add_lora(build("opt"), target_modules=["no_such_layer"])


# ---------------------------------------------------------------------- prefix


def with_cache(model, prefix):
    """The same prefix by transformers' own cache, with the positions given explicitly."""
    cache = transformers.DynamicCache(config=model.config)
    for index, (keys, values) in enumerate(prefix):
        heads = [
            t.detach().view(len(t), -1, 8).transpose(0, 1)[None].expand(len(IDS), -1, -1, -1) for t in (keys, values)
        ]
        cache.update(*heads, index)
    visible = torch.cat([torch.ones(len(IDS), len(prefix[0][0]), dtype=torch.long), MASK], dim=1)
    positions = (MASK.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=visible, position_ids=positions, past_key_values=cache).logits


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_a_prefix_equals_past_keys_and_values_without_a_shift_of_positions(kind):
    model = add_prefix(build(kind), num_prefix=5, seed=1)
    layers = model.model.decoder.layers if kind == "opt" else model.model.layers
    prefix = [(layer.self_attn.prefix_keys, layer.self_attn.prefix_values) for layer in layers]
    expected = with_cache(build(kind), prefix)
    torch.testing.assert_close(logits(model)[MASK.bool()], expected[MASK.bool()], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_a_prefix_starts_as_real_activations(kind):
    tokens = torch.tensor([7, 30, 8])
    model, base = add_prefix(build(kind), init_tokens=tokens), build(kind)
    cache = transformers.DynamicCache(config=base.config)
    with torch.no_grad():
        base(input_ids=tokens[None], past_key_values=cache, use_cache=True)
    attentions = [module for module in model.modules() if hasattr(module, "prefix_keys")]
    for attention, layer in zip(attentions, cache.layers, strict=True):
        for found, states in ((attention.prefix_keys, layer.keys), (attention.prefix_values, layer.values)):
            torch.testing.assert_close(found.data, states[0].transpose(0, 1).flatten(1))


@pytest.mark.parametrize("kind", ["roberta", "bert"])
def test_a_masked_model_attends_to_the_prefix_as_to_tokens_without_positions(kind):
    model = build(kind)
    plain = logits(model, RIGHT, (RIGHT != 1).long())
    add_prefix(model, num_prefix=2, seed=0)
    assert len(trained_names(model)) == 4
    mask = (RIGHT != 1).long()
    changed = logits(model, RIGHT, mask)
    assert (changed - plain).abs().max() > 1e-3
    # A row gives the same with and without padding behind it: the prefix does not move the mask.
    alone = logits(model, RIGHT[:1, :5], mask[:1, :5])
    torch.testing.assert_close(logits(model, RIGHT, mask)[:1, :5], alone, rtol=1e-4, atol=1e-5)


def test_without_padding_causality_is_kept():
    model = add_prefix(build("opt"), seed=2)
    ids = IDS[1:]
    changed = ids.clone()
    changed[0, -1] = 40
    a, b = (logits(model, x, torch.ones_like(x)) for x in (ids, changed))
    torch.testing.assert_close(a[:, :-1], b[:, :-1])
    assert (a[:, -1] - b[:, -1]).abs().max() > 1e-3


def test_generation_sees_the_prefix_with_and_without_a_cache():
    model = add_prefix(build("opt"), seed=2)
    options = {"input_ids": IDS, "attention_mask": MASK, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 1}
    cached, plain = (model.generate(**options, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain)
    ids, mask = IDS, MASK
    for _ in range(5):
        ids = torch.cat([ids, logits(model, ids, mask)[:, -1:].argmax(-1)], dim=1)
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
    assert torch.equal(cached, ids)


def test_random_prefix_tokens_follow_the_seed_and_avoid_padding():
    first, same, other = (add_prefix(build("opt"), seed=seed) for seed in (1, 1, 2))
    values = [
        dict(m.named_parameters())["model.decoder.layers.0.self_attn.prefix_values"] for m in (first, same, other)
    ]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    with torch.no_grad():
        add_prefix(build("roberta"), num_prefix=30, seed=1)  # padding ids would give positions that do not exist


def test_a_prefix_can_be_saved_and_loaded_with_the_model(tmp_path):
    model = add_prefix(build("opt"), seed=1)
    state = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    other = add_prefix(build("opt"), seed=5)
    other.load_state_dict(state, strict=False)
    assert torch.equal(logits(model), logits(other))
    model.save_pretrained(tmp_path)
    again = transformers.OPTForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again)[MASK.bool()], logits(build("opt"))[MASK.bool()])


def test_encoder_decoder_models_are_refused():
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    with pytest.raises(InputError, match="decoder-only or encoder-only"):
        add_prefix(transformers.T5ForConditionalGeneration(config))


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("adapt", [add_lora, add_prefix, train_head_only])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mezo_trains_the_adapter_and_leaves_the_base(adapt, dtype):
    model = adapt(build("opt", dtype))
    base = frozen(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    optimizer = MeZO(model, 1e-2, eps=1e-2)
    for _ in range(3):
        optimizer.step(lambda: option_lm_loss(model, IDS, MASK, [2, 3]))
    assert frozen(model) == base
    assert all(not torch.equal(model.get_parameter(name), tensor) for name, tensor in before.items())


def test_the_head_alone_is_untied_from_the_input_embedding(tmp_path):
    model = train_head_only(build("opt"))
    assert trained_names(model) == ["lm_head.weight"]
    embedding = model.get_input_embeddings().weight
    assert embedding is not model.lm_head.weight and torch.equal(embedding, model.lm_head.weight)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(tmp_path)
    again = transformers.OPTForCausalLM.from_pretrained(tmp_path)
    assert (again.lm_head.weight == 0).all() and torch.equal(again.get_input_embeddings().weight, embedding)


def test_an_untied_masked_head_survives_saving(tmp_path):
    model = train_head_only(build("roberta"))
    names = trained_names(model)
    assert "lm_head.decoder.weight" in names and all(name.startswith("lm_head.") for name in names)
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).normal_(generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(tmp_path)
    again = transformers.RobertaForMaskedLM.from_pretrained(tmp_path)
    mask = (RIGHT != 1).long()
    torch.testing.assert_close(logits(again, RIGHT, mask), logits(model, RIGHT, mask))
