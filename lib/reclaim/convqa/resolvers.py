"""Coreference models and rewriters by their names in the configuration.

`rules` needs no download (the default). `fastcoref` loads F-coref (Otmazgin et al. 2022) by the package of that name, which is
not among the pins (`pip install -c constraints.txt fastcoref==2.1.6` goes beside them), with weights of the Hub. Its other
model, LingMess, does not load under transformers 5. A `rewriter` is a sequence-to-sequence model that writes a
self-contained question, such as a T5 trained on CANARD; it takes the place of the substitution of mentions only, and the
decision which question is invalid stays with the resolver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from reclaim.convqa.coreference import Document, Resolver
from reclaim.convqa.history import CorefText
from reclaim.convqa.rules import RuleResolver
from reclaim.convqa.words import find_words
from reclaim.errors import InputError


def build_resolver(chosen: str | Mapping[str, str], data: Mapping[str, Path], device: Any = "cpu") -> Resolver:
    """The resolver `rules`, or that of `{fastcoref: NAME of a model in data}`."""
    if chosen == "rules":
        return RuleResolver()
    if isinstance(chosen, Mapping) and set(chosen) == {"fastcoref"}:
        return FastcorefResolver(data[chosen["fastcoref"]], device)
    raise InputError("validity.resolver", repr(chosen), "rules, or {fastcoref: MODEL}")


def build_rewriter(name: str | None, data: Mapping[str, Path], device: Any = "cpu") -> Seq2SeqRewriter | None:
    """The rewriter that a model of the chain makes; None for the substitution of mentions."""
    return None if name is None else Seq2SeqRewriter(data[name], device)


class FastcorefResolver:
    """Clusters of F-coref. Its package is imported here only, and its tokens are those of `find_words`.

    Loading seeds the global generators of random, numpy and torch, which nothing here draws from.
    """

    def __init__(self, folder: str | Path, device: Any = "cpu"):
        try:
            fastcoref = import_module("fastcoref")
            model_class = import_module("fastcoref.coref_models.modeling_fcoref").FCorefModel
        except ImportError:
            raise InputError(
                "validity.resolver", "fastcoref, which is not installed", "the package",
                "pip install -c constraints.txt fastcoref==2.1.6, or resolver: rules.",
            ) from None  # fmt: skip
        begin_by_post_init(model_class)
        import_module("datasets").disable_progress_bars()
        self.model = fastcoref.FCoref(str(folder), device=str(device), nlp=None, enable_progress_bar=False)

    def resolve(self, texts: Sequence[CorefText]) -> list[Document]:
        words = [[word for word, _, _ in find_words(str(text))] for text in texts]
        found = self.model.predict(texts=words, is_split_into_words=True)
        return [Document.of(each, _clusters(prediction)) for each, prediction in zip(words, found, strict=True)]


def begin_by_post_init(model_class: Any) -> None:
    """Make a model class for transformers 4, which draws its weights by `init_weights`, fit for 5.

    There that is a part of `post_init`, which also notes what `from_pretrained` needs.
    """
    from transformers import PreTrainedModel

    def init_weights(model) -> None:
        if hasattr(model, "all_tied_weights_keys"):
            PreTrainedModel.init_weights(model)
        else:
            model.post_init()

    model_class.init_weights = init_weights


def _clusters(prediction) -> list[list[tuple[int, int]]]:
    """First and last words of the mentions; those that hold a special token come as None."""
    clusters = [[span for span in own if span is not None] for own in prediction.get_clusters(as_strings=False)]
    return [[(first, last - 1) for first, last in own] for own in clusters if len(own) > 1]


class Seq2SeqRewriter:
    """A sequence-to-sequence model that reads the older turns and the question and writes the self-contained question."""

    def __init__(self, folder: str | Path, device: Any = "cpu", max_new_tokens: int = 64):
        from reclaim.models import load, load_tokenizer

        self.model, self.tokenizer = load(folder, "seq2seq").to(device), load_tokenizer(folder)
        self.max_new_tokens = max_new_tokens

    def rewrite(self, texts: Sequence[CorefText]) -> list[str]:
        """One question for each text, in the order that T5 models for CANARD read: oldest turn first, `|||` between."""
        import torch

        prompts = [" ||| ".join([*(part for turn in text.turns for part in turn), text.question]) for text in texts]
        batch = self.tokenizer(prompts, return_tensors="pt", padding=True).to(self.model.device)
        with torch.no_grad():
            ids = self.model.generate(
                **batch, max_new_tokens=self.max_new_tokens, num_beams=1, do_sample=False
            )  # fmt: skip
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)
