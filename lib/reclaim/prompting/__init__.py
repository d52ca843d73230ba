"""Prompts as data: templates for causal and for masked language models, and how a row becomes token ids.

Sources: Malladi et al. 2023 (MeZO), section 3, appendix E, and its official code. `CausalTemplate` encodes as the OPT
experiments do; `MaskedTemplate` reads the template language of LM-BFF (Gao et al. 2021), which the RoBERTa
experiments and AutoSeq use. The tasks' templates lie in `reclaim/templates/causal.yaml` and `masked.yaml`, over the
columns of the canonical tables (`reclaim.data`); a config may bring its own. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml

from reclaim.errors import InputError
from reclaim.prompting.base import Row
from reclaim.prompting.causal import CausalTemplate, EncodedOption
from reclaim.prompting.masked import MaskedPrompt, MaskedTemplate, encode_plain, parse_template
from reclaim.prompting.tokens import leading_ids, start_id, truncate_left

__all__ = [
    "CausalTemplate",
    "EncodedOption",
    "MaskedPrompt",
    "MaskedTemplate",
    "Row",
    "encode_plain",
    "get_template",
    "leading_ids",
    "parse_template",
    "start_id",
    "truncate_left",
]

FAMILIES: dict[str, type[CausalTemplate] | type[MaskedTemplate]] = {"causal": CausalTemplate, "masked": MaskedTemplate}


@cache
def _library(family: str) -> dict[str, dict[str, Any]]:
    return yaml.safe_load((resources.files("reclaim") / "templates" / f"{family}.yaml").read_text(encoding="utf-8"))


def get_template(
    spec: str | Mapping[str, Any], family: str, place: str = "template"
) -> CausalTemplate | MaskedTemplate:
    """A template of a model family: by name, by name with some keys replaced ({name: sst2, ...}), or in full.

    Raises `InputError` (at `place`, a config key) for an unknown family, a task without a template for it, or bad keys.
    """
    if family not in FAMILIES:
        raise InputError(place, f"family {family!r}", f"one of {', '.join(FAMILIES)}")
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        raise InputError(place, repr(spec), "the name of a template, or its keys")
    known = _library(family)
    name = spec.get("name")
    if name is not None and name not in known:
        raise InputError(
            place, f"no {family} template {name!r}", f"one of {', '.join(sorted(known))}, or a template in full"
        )
    overrides = {key: value for key, value in spec.items() if key != "name"}
    usual = {} if name is None else known[name]
    return FAMILIES[family].from_config({**usual, **overrides}, name=name if name and not overrides else place)
