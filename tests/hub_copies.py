"""Small copies of repositories of the Hub, in their own formats: data sets in their real schemas, models with random weights.

A data set's copy is a folder as the Hub has it (Parquet files by configuration with a README that names them, or JSON lines), a
model's one that `save_pretrained` wrote. With them the specs of `config/paper.yaml` go through their own loading code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from snakemake.common.configfile import load_configfile
from snakemake.utils import update_config

ROOT = Path(__file__).parents[1]
WORDS = "river stone cloud paper engine garden window silver market yellow winter bottle ladder forest copper".split()

TEXT, INT, FLOAT, BOOL, TEXTS, IMAGE = "text", "int", "float", "bool", "texts", "image"
TRAIN_VALIDATION_TEST = ("train", "validation", "test")
PAIR = {"premise": TEXT, "hypothesis": TEXT}
GLUE_PAIR = {"sentence1": TEXT, "sentence2": TEXT, "idx": INT}
FALSE_TRUE = ["False", "True"]
FAULTS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
JIGSAW = "tcapelle/jigsaw-toxic-comment-classification-challenge"
DIGITS = {"image": IMAGE, "label": [str(digit) for digit in range(10)]}

SCHEMAS: dict[tuple[str, str | None], dict[str, Any]] = {
    ("nyu-mll/glue", "sst2"): {"sentence": TEXT, "label": ["negative", "positive"], "idx": INT},
    ("nyu-mll/glue", "cola"): {"sentence": TEXT, "label": ["unacceptable", "acceptable"], "idx": INT},
    ("nyu-mll/glue", "mrpc"): {**GLUE_PAIR, "label": ["not_equivalent", "equivalent"]},
    ("nyu-mll/glue", "rte"): {**GLUE_PAIR, "label": ["entailment", "not_entailment"]},
    ("nyu-mll/glue", "wnli"): {**GLUE_PAIR, "label": ["not_entailment", "entailment"]},
    ("nyu-mll/glue", "stsb"): {**GLUE_PAIR, "label": FLOAT},
    ("nyu-mll/glue", "qqp"): {"question1": TEXT, "question2": TEXT, "label": ["not_duplicate", "duplicate"], "idx": INT},
    ("nyu-mll/glue", "qnli"): {"question": TEXT, "sentence": TEXT, "label": ["entailment", "not_entailment"], "idx": INT},
    ("nyu-mll/glue", "mnli"): {**PAIR, "label": ["entailment", "neutral", "contradiction"], "idx": INT},
    ("stanfordnlp/snli", None): {**PAIR, "label": ["entailment", "neutral", "contradiction"]},
    ("google/boolq", None): {"question": TEXT, "answer": BOOL, "passage": TEXT},
    ("aps/super_glue", "cb"): {**PAIR, "idx": INT, "label": ["entailment", "contradiction", "neutral"]},
    ("aps/super_glue", "wic"): {
        "word": TEXT, "sentence1": TEXT, "sentence2": TEXT, "start1": INT, "start2": INT, "end1": INT, "end2": INT,
        "idx": INT, "label": FALSE_TRUE,
    },
    ("aps/super_glue", "multirc"): {
        "paragraph": TEXT, "question": TEXT, "answer": TEXT, "idx": {"paragraph": INT, "question": INT, "answer": INT},
        "label": FALSE_TRUE,
    },
    ("aps/super_glue", "wsc.fixed"): {
        "text": TEXT, "span1_index": INT, "span2_index": INT, "span1_text": TEXT, "span2_text": TEXT, "idx": INT,
        "label": FALSE_TRUE,
    },
    ("aps/super_glue", "copa"): {
        "premise": TEXT, "choice1": TEXT, "choice2": TEXT, "question": TEXT, "idx": INT, "label": ["choice1", "choice2"],
    },
    ("aps/super_glue", "record"): {
        "passage": TEXT, "query": TEXT, "entities": TEXTS, "entity_spans": {"text": TEXTS, "start": [INT], "end": [INT]},
        "answers": TEXTS, "idx": {"passage": INT, "query": INT},
    },
    ("rajpurkar/squad", None): {
        "id": TEXT, "title": TEXT, "context": TEXT, "question": TEXT, "answers": {"text": TEXTS, "answer_start": [INT]},
    },
    ("ucinlp/drop", None): {
        "section_id": TEXT, "query_id": TEXT, "passage": TEXT, "question": TEXT,
        "answers_spans": {"spans": TEXTS, "types": TEXTS},
    },
    ("wikimedia/wikipedia", "20231101.en"): {"id": TEXT, "url": TEXT, "title": TEXT, "text": TEXT},
    ("Salesforce/wikitext", "wikitext-103-raw-v1"): {"text": TEXT},
    ("ylecun/mnist", None): DIGITS,
    ("zalando-datasets/fashion_mnist", None): DIGITS,
    ("ParlAI/blended_skill_talk", None): {
        "personas": TEXTS, "additional_context": TEXT, "previous_utterance": TEXTS, "context": TEXT, "free_messages": TEXTS,
        "guided_messages": TEXTS, "guided_chosen_suggestions": TEXTS,
    },
    (JIGSAW, None): {"id": TEXT, "comment_text": TEXT, **dict.fromkeys(FAULTS, INT)},
    ("SetFit/sst5", None): {"text": TEXT, "label": INT, "label_text": TEXT},
    ("SetFit/CR", None): {"text": TEXT, "label": INT, "label_text": TEXT},
    ("SetFit/subj", None): {"text": TEXT, "label": INT, "label_text": TEXT},
    ("cornell-movie-review-data/rotten_tomatoes", None): {"text": TEXT, "label": ["neg", "pos"]},
    ("CogComp/trec", None): {
        "text": TEXT, "coarse_label": ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"],
        "fine_label": [f"fine:{i}" for i in range(50)],
    },
    ("mteb/FinancialPhrasebankClassification", None): {"text": TEXT, "label": ["negative", "neutral", "positive"]},
    ("mteb/poem_sentiment", None): {"text": TEXT, "label": ["negative", "positive", "no_impact", "mixed"]},
    ("cardiffnlp/tweet_eval", "emotion"): {"text": TEXT, "label": ["anger", "joy", "optimism", "sadness"]},
    ("cardiffnlp/tweet_eval", "hate"): {"text": TEXT, "label": ["non-hate", "hate"]},
    ("cardiffnlp/tweet_eval", "stance_atheism"): {"text": TEXT, "label": ["none", "against", "favor"]},
    ("cardiffnlp/tweet_eval", "stance_feminist"): {"text": TEXT, "label": ["none", "against", "favor"]},
    ("dair-ai/emotion", "split"): {"text": TEXT, "label": ["sadness", "joy", "love", "anger", "fear", "surprise"]},
    ("ethos", "multilabel"): {
        "text": TEXT, "violence": ["not_violent", "violent"], "race": ["false", "true"], "gender": ["false", "true"],
        "national_origin": ["false", "true"], "religion": ["false", "true"],
    },
    ("sick", None): {
        "id": TEXT, "sentence_A": TEXT, "sentence_B": TEXT, "label": ["entailment", "neutral", "contradiction"],
        "relatedness_score": FLOAT,
    },
}  # fmt: skip
"""(id, configuration) -> columns: a list of names is a ClassLabel. ETHOS and SICK go by the folders they are copied to."""

SPLITS = {
    ("nyu-mll/glue", "mnli"): (
        "train",
        "validation_matched",
        "validation_mismatched",
        "test_matched",
        "test_mismatched",
    ),
    ("google/boolq", None): ("train", "validation"),
    ("rajpurkar/squad", None): ("train", "validation"),
    ("ucinlp/drop", None): ("train", "validation"),
    ("wikimedia/wikipedia", "20231101.en"): ("train",),
    ("ylecun/mnist", None): ("train", "test"),
    ("zalando-datasets/fashion_mnist", None): ("train", "test"),
    (JIGSAW, None): ("train", "test", "balanced_test"),
    ("SetFit/CR", None): ("train", "test"),
    ("SetFit/subj", None): ("train", "test"),
    ("CogComp/trec", None): ("train", "test"),
    ("mteb/FinancialPhrasebankClassification", None): ("train",),
    ("ethos", "multilabel"): ("train",),
}
"""Where these are not train, validation and test."""

JSON_LINES = {
    "SetFit/sst5": ["very negative", "negative", "neutral", "positive", "very positive"],
    "SetFit/CR": ["negative", "positive"],
    "SetFit/subj": ["objective", "subjective"],
}
"""Repositories of JSON lines, with what `label_text` has for each label."""


@cache
def overlay(name: str = "paper") -> dict[str, Any]:
    """The configuration under an overlay, merged as the workflow merges it; not to be changed."""
    config = load_configfile(ROOT / "config.yaml")
    own = load_configfile(ROOT / "config" / f"{name}.yaml")
    for part in own.get("parts", []):
        update_config(config, load_configfile(ROOT / part))
    update_config(config, own)
    return config


def repository(folder: Path, spec: Mapping[str, Any], rows_per_class: int = 40) -> Path:
    """Write a small copy of the repository behind a Hub data set's spec; gives its folder."""
    key = spec.get("id") or Path(spec["path"]).name, spec.get("name")
    columns = SCHEMAS[key]
    splits = SPLITS.get(key, TRAIN_VALIDATION_TEST)
    folder.mkdir(parents=True)
    files = {}
    for number, split in enumerate(splits):
        rows = _rows(key, columns, split, number, rows_per_class if split == "train" else 4)
        if key[0] in JSON_LINES:
            files[split] = f"{split}.jsonl"
            (folder / files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
            continue
        converted = key[0] in ("CogComp/trec", "sick", "ethos")  # branches that the Hub converted
        at = (
            f"{key[1] or 'default'}/{split}/0000.parquet"
            if converted
            else f"{key[1] or 'data'}/{split}-00000-of-00001.parquet"
        )
        files[split] = at
        _write_parquet(folder / at, columns, rows)
    if key[0] not in ("CogComp/trec", "sick"):
        data_files = "".join(f"\n  - split: {split}\n    path: {path}" for split, path in files.items())
        head = f"configs:\n- config_name: {key[1] or 'default'}\n  data_files:{data_files}\n"
        (folder / "README.md").write_text(f"---\n{head}---\n# A copy\n")
    return folder


def _rows(key, columns: Mapping[str, Any], split: str, number: int, per_class: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(number)
    classes = max((len(kind) for kind in columns.values() if isinstance(kind, list) and kind != [INT]), default=2)
    classes = len(JSON_LINES.get(key[0], range(min(classes, 6))))
    rows = []
    for i in range(per_class * classes):
        row = {name: _value(kind, i, classes, f"{split} {name} {i}", rng) for name, kind in columns.items()}
        hidden = split.startswith("test") and key[0] in ("nyu-mll/glue", "aps/super_glue")
        if isinstance(row.get("label"), int):
            row["label"] = -1 if hidden or key[0] == "stanfordnlp/snli" and i == 1 else i % classes
        if key[0] in JSON_LINES:
            row["label_text"] = JSON_LINES[key[0]][row["label"]]
        if key[1] == "copa":
            row["question"] = ["cause", "effect"][i // 2 % 2]
        if key[1] == "record":
            entities = [word.title() for word in WORDS[i % 5 : i % 5 + 4 + i % 3]]
            right = entities[2:0:-1] if i % 2 else entities[3:]
            row["passage"] += f"\n@highlight\n{' and '.join(entities)} were there"
            row |= {"query": "Many saw @placeholder there", "entities": entities, "answers": right}
        if key[0] == JIGSAW:
            # Some comments have several lines; some test rows were not scored.
            row["comment_text"] = row["comment_text"].replace(" has", "\nIt has" if i % 3 else " has")
            marked = {"toxic": i % 4 == 1, "insult": i % 4 == 3, "obscene": i % 4 == 3}
            unscored = split == "test" and i == 2
            row |= {fault: -1 if unscored else int(marked.get(fault, False)) for fault in FAULTS}
        if key[0] == "rajpurkar/squad":
            row["context"] = f"It was a {WORDS[i % 15]} {i}."
            row["answers"] = {"text": [WORDS[i % 15]], "answer_start": [9]}
        rows.append(row)
    return rows


def _value(kind: Any, i: int, classes: int, name: str, rng) -> Any:
    if kind == TEXT:
        return f"The {name} has a {' and a '.join(rng.choice(WORDS, 3))}."
    if kind == TEXTS:
        return [f"{WORDS[i % 15]} {i}"]
    if kind == [INT]:
        return [0]
    if kind == IMAGE:
        from PIL import Image

        return Image.fromarray((rng.random((28, 28)) * 200 + i % 6).astype(np.uint8))
    if isinstance(kind, Mapping):
        return {key: _value(value, i, classes, name, rng) for key, value in kind.items()}
    return {INT: i, FLOAT: i % 11 / 2, BOOL: i % 2 == 1}[kind] if isinstance(kind, str) else i % len(kind)


def _write_parquet(path: Path, columns: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
    import datasets

    def feature(kind: Any):
        if isinstance(kind, Mapping):
            return {name: feature(value) for name, value in kind.items()}
        if kind in (TEXTS, [INT]):
            return datasets.List(datasets.Value("string" if kind == TEXTS else "int32"))
        if isinstance(kind, list):
            return datasets.ClassLabel(names=kind)
        if kind == IMAGE:
            return datasets.Image()
        return datasets.Value({TEXT: "string", INT: "int32", FLOAT: "float32", BOOL: "bool"}[kind])

    path.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({name: feature(kind) for name, kind in columns.items()})
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)


# -------------------------------------------------------------------------------------------------------------- models

SENTENCES = [
    f"The {a} has a {b} and a {c}. Label: yes no True False positive negative 0 1 2 @ #\n" for a in WORDS for b in WORDS
    for c in WORDS[:3]
]  # fmt: skip
LABEL_WORDS = (
    "terrible bad okay good great Yes No Maybe Expression Entity Description Human Location Number "
    "The It was has a and ? . , :"
)


def model_copy(architecture: str, folder: Path, *, pickled: bool = False) -> Path:
    """Write a small model with random weights and a tokenizer of its class, as `save_pretrained` does; gives the folder.

    `pickled` writes the weights as older repositories have them.
    """
    import reclaim.torchvision_shim  # noqa: F401
    import torch
    import transformers

    tokenizer = _tokenizer(architecture)
    class_name, sizes = MODELS[architecture]
    vocabulary = {} if tokenizer is None else {"vocab_size": len(tokenizer)}
    config_class = getattr(transformers, class_name).config_class
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, class_name)(config_class(**vocabulary, **sizes))
        if class_name.startswith("T5For"):  # v1.1 has a head of its own
            model.lm_head.weight = torch.nn.Parameter(torch.randn(len(tokenizer), sizes["d_model"]))
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if architecture == "t5-encoder":  # sentence-transformers' projection behind GTR
        from safetensors.torch import save_file

        (folder / "2_Dense").mkdir()
        save_file({"linear.weight": torch.eye(8, sizes["d_model"])}, folder / "2_Dense" / "model.safetensors")
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


_DECODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 1500}
_ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_OPT = {**_DECODER, "ffn_dim": 32, "bos_token_id": 2, "pad_token_id": 1, "eos_token_id": 2}
_IMAGE = {"image_size": 32, "patch_size": 4, "num_labels": 3}
_ROBERTA = {**_ENCODER, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
_T5 = {
    "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False, "decoder_start_token_id": 0,
}  # fmt: skip


def _labels(*names: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("OPTForCausalLM", {**_OPT, "word_embed_proj_dim": 16}),
    # OPT-350m alone has a projection of the embeddings, and its layer norms behind the layers.
    "opt-350m": ("OPTForCausalLM", {**_OPT, "word_embed_proj_dim": 8, "do_layer_norm_before": False}),
    "llama": ("LlamaForCausalLM", {**_DECODER, "intermediate_size": 32}),
    "gpt_neox": ("GPTNeoXForCausalLM", {**_DECODER, "intermediate_size": 32}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 1500}),
    "roberta": ("RobertaForMaskedLM", _ROBERTA),
    "roberta-toxic": ("RobertaForSequenceClassification", {**_ROBERTA, **_labels("neutral", "toxic")}),
    "roberta-mnli": ("RobertaForSequenceClassification", {**_ROBERTA, **_labels("CONTRADICTION", "NEUTRAL", "ENTAILMENT")}),
    "roberta-qa": ("RobertaForQuestionAnswering", _ROBERTA),
    "bart-mnli": (
        "BartForSequenceClassification",
        {
            "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 512,
            **_labels("contradiction", "neutral", "entailment"),
        },
    ),
    "bert": ("BertForMaskedLM", {**_ENCODER, "max_position_embeddings": 512}),
    "bert-toxic": (
        "BertForSequenceClassification",
        {**_ENCODER, "max_position_embeddings": 512, "problem_type": "multi_label_classification", **_labels(*FAULTS)},
    ),
    "t5": ("T5ForConditionalGeneration", _T5),
    "t5-encoder": ("T5EncoderModel", _T5),
    "t5-nli": ("T5ForConditionalGeneration", _T5),
    "blenderbot": (
        "BlenderbotForConditionalGeneration",
        {
            "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 128,
        },
    ),
    "vit": ("ViTForImageClassification", {**_ENCODER, **_IMAGE}),
    "swin": ("SwinForImageClassification", {**_IMAGE, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}),
}  # fmt: skip


ARCHITECTURES = {
    "opt-350m": "opt-350m", "opt-13b": "opt", "llama-7b": "llama", "llama-13b": "llama", "llama-2-13b-chat": "llama",
    "pythia-1b": "gpt_neox", "gpt2": "gpt2", "gpt2-large": "gpt2", "bert-base": "bert", "roberta-large": "roberta",
    "t5-v1_1-base": "t5", "t5-v1_1-large": "t5", "blenderbot-400m": "blenderbot", "blenderbot-3b": "blenderbot",
    "toxic-bert": "bert-toxic", "roberta-toxicity": "roberta-toxic", "roberta-mnli": "roberta-mnli", "bart-mnli": "bart-mnli",
    "true-nli": "t5-nli", "roberta-large-squad": "roberta-qa", "gtr-t5-large": "t5-encoder",
}  # fmt: skip
"""Models of the overlay that have a copy here, with their architecture."""
PICKLED = ("opt-13b", "opt-350m", "t5-v1_1-base", "t5-v1_1-large")
"""As these repositories are at their commits."""


def _tokenizer(architecture: str):
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    from reclaim.tokenization import train_tokenizer

    family = architecture.partition("-")[0]
    if family in ("roberta", "bart"):  # the label words of its templates are single tokens, as in the real one
        tokenizer = train_tokenizer("roberta", [" ".join(WORDS), LABEL_WORDS])
        tokenizer.init_kwargs.pop("model_vocab_size")  # which the real one has not: other words are spelt out
        return tokenizer
    if architecture == "t5-nli":  # the digits of its answers are single tokens
        return train_tokenizer("t5", SENTENCES)
    if family in ("opt", "gpt2", "t5"):
        return train_tokenizer(family, SENTENCES, 600)
    if family in ("gpt_neox", "blenderbot"):
        learned = json.loads(train_tokenizer("gpt2", SENTENCES, 600).backend_tokenizer.to_str())["model"]
        class_name = {"gpt_neox": "GPTNeoXTokenizer", "blenderbot": "BlenderbotTokenizer"}[family]
        return getattr(transformers, class_name)(vocab=learned["vocab"], merges=list(map(tuple, learned["merges"])))
    if family == "llama":
        special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        learner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        learner.pre_tokenizer = pre_tokenizers.Metaspace()
        options = {"vocab_size": 700, "special_tokens": special, "show_progress": False}
        learner.train_from_iterator(SENTENCES, trainers.BpeTrainer(**options))
        learned = json.loads(learner.to_str())["model"]
        merges = list(map(tuple, learned["merges"]))
        return transformers.LlamaTokenizer(vocab=learned["vocab"], merges=merges, add_bos_token=True)
    if family == "bert":
        learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        learner.normalizer, learner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        options = {"vocab_size": 400, "special_tokens": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]}
        learner.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(**options, show_progress=False))
        return transformers.BertTokenizer(vocab=learner.get_vocab())
    return None
