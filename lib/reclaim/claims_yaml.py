"""claims.yaml as data: the fields of a claim, and reading the file against its JSON schema.

The meaning of the fields is in `claims`; their types and which kind may have which are in schemas/claims.schema.json.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from reclaim.errors import InputError
from reclaim.io import read_json

Subset = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One gate, guard or warning of a claim: a level (`where`) or a comparison (`treatment` against `baseline`)."""

    name: str
    metric: str
    table: str = "metrics"
    experiment: str | Sequence[str] = ""
    optional: bool = False
    where: Subset | Sequence[Subset] | None = None
    every: str = "run"
    at_least: float = -math.inf
    at_most: float = math.inf
    between: Sequence[float] | None = None
    treatment: Subset | Sequence[Subset] | None = None
    baseline: Subset = field(default_factory=dict)
    of: str = "difference"
    low_above: float | None = None
    high_below: float | None = None
    mean_at_least: float = -math.inf
    mean_at_most: float = math.inf


@dataclass(frozen=True)
class Claim:
    """One claim, with the key of the paper that it stands under."""

    paper: str
    claim: str
    statement: str
    source: str
    paper_value: str
    paper_estimate: float = math.nan
    headline: bool = False
    overlay: str = ""
    scale_note: str = ""
    not_testable: str = ""
    kind: str = ""
    table: str = "metrics"
    experiment: str | Sequence[str] = ""
    metric: str = ""
    direction: str = "higher"
    treatment: Subset = field(default_factory=dict)
    baseline: Mapping[str, Any] | None = None
    differ_in: Sequence[str] = ()
    margin: float = 0.0
    contradicted_below: float | None = None
    at_least: float = -math.inf
    at_most: float = math.inf
    over: Mapping[str, Any] = field(default_factory=dict)
    at: Subset = field(default_factory=dict)
    against: Subset = field(default_factory=dict)
    test: str = "superior"
    resample: str = "seeds"
    min_seeds: int = 3
    effect: float | None = None
    min_effect: float | None = None
    max_effect: float | None = None
    signs: str | Mapping[str, Any] | None = None
    gates: Sequence[Check] = ()
    guards: Sequence[Check] = ()
    warnings: Sequence[Check] = ()


class _Loader(yaml.SafeLoader):
    """Refuses a key written twice, of which YAML would silently keep the last."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} appears twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


def load_claims(path: str | Path, schema_path: str | Path) -> list[Claim]:
    """Read claims.yaml and its JSON schema from files; raises InputError as `parse_claims` does."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"an unreadable file ({error})", "a YAML file of claims") from None
    return parse_claims(text, read_json(schema_path), str(path))


def parse_claims(text: str, schema: Mapping[str, Any], place: str = "claims.yaml") -> list[Claim]:
    """Read the text of claims.yaml: a list of claims under each paper's key.

    schema: the document of schemas/claims.schema.json. Raises InputError with the path of the key, as in
    "claims.yaml: mezo/C1: margin", for broken YAML, unknown, repeated or missing keys, values of the wrong kind, and
    two claims of one name.
    """
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise InputError(place, " ".join(str(error).split()), "valid YAML") from None
    errors = list(Draft202012Validator(schema).iter_errors(document))
    if errors:
        raise _schema_error(min(errors, key=lambda error: [str(key) for key in error.absolute_path]), document, place)
    claims = [_claim(paper, entry) for paper, entries in document.items() for entry in entries]
    names = [f"{claim.paper}/{claim.claim}" for claim in claims]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{place}: {name}", f"{names.count(name)} claims of this name", "one")
    return claims


def _claim(paper: str, entry: Mapping[str, Any]) -> Claim:
    # A check is on the claim's metric and experiment unless it names others.
    usual = {"metric": entry.get("metric", ""), "experiment": entry.get("experiment", "")}
    checks = {
        role: tuple(Check(**{**usual, **check}) for check in entry[role])
        for role in ("gates", "guards", "warnings")
        if role in entry
    }
    estimate = entry.get("paper_estimate")
    return Claim(paper=paper, **{**entry, **checks, "paper_estimate": math.nan if estimate is None else estimate})


def _schema_error(error: ValidationError, document: Any, place: str) -> InputError:
    """Turn the validator's error into ours: names in the path, the schema's own words for what is expected."""
    path = list(error.absolute_path)
    found = "neither of them" if error.validator == "anyOf" else repr(error.instance)
    expected = error.schema.get("description", error.message)
    if error.validator == "additionalProperties":
        known = sorted(error.schema["properties"])
        path.append(min(set(error.instance) - set(known)))
        found, expected = "an unknown key", f"one of {', '.join(known)}"
    elif error.validator == "required":
        path.append(min(set(error.validator_value) - set(error.instance)))
        found, expected = "no such key", "it, for this kind of claim"
    if len(path) > 1:
        entry = document[path[0]][path[1]]
        name = entry.get("claim") if isinstance(entry, Mapping) else None
        path[:2] = [f"{path[0]}/{name or f'number {path[1] + 1}'}"]
    keys = ".".join(str(key) for key in path[1:])
    parts = [place, *[str(key) for key in path[:1]], *([keys] if keys else [])]
    return InputError(": ".join(parts), found if len(found) < 200 else f"{found[:200]}...", expected)
