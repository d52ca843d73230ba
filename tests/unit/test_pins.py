"""The pins stand in one place: constraints and conda environments say the same as pyproject.toml."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(lines):
    found = {}
    for line in lines:
        name, exact, number = re.fullmatch(r"([A-Za-z0-9_.-]+)(==)?(\S*)", line).groups()
        assert exact, f"{line}: not an exact pin"
        found[re.sub(r"[-_.]+", "-", name).lower()] = number
    return found


RUNTIME = pins(PROJECT["dependencies"])
EXTRAS = PROJECT["optional-dependencies"]
ALL = RUNTIME | pins(EXTRAS["bench"] + EXTRAS["dev"] + EXTRAS["slurm"])
CONSTRAINTS = pins(
    line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")
)


@pytest.mark.parametrize("name", sorted(ALL))
def test_constraints_hold_every_pin(name):
    assert CONSTRAINTS.get(name) == ALL[name]


@pytest.mark.parametrize("name", sorted(RUNTIME))
def test_the_installed_version_is_the_pinned_one(name):
    assert version(name).partition("+")[0] == RUNTIME[name]


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda path: path.stem)
def test_conda_environments_repeat_the_pins(path):
    environment = yaml.safe_load(path.read_text())
    assert environment["channels"][0] == "conda-forge"
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    for name, number in pins(pip).items():
        assert RUNTIME.get(name) == number, f"{path.name}: {name}"


RULES = {
    match[1]: match[0]
    for path in sorted((ROOT / "rules").glob("*.smk"))
    for match in re.finditer(r"^rule (\w+):\n(?:(?:    .*)?\n)+", path.read_text(), flags=re.MULTILINE)
    if "script:\n" in match[0]
}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_says_what_it_runs_in_needs_and_leaves(name):
    text = RULES[name]
    (environment,) = re.findall(r'"\.\./envs/(\w+\.yaml)"', text)
    assert (ROOT / "envs" / environment).exists()
    for key in ("    log:\n", "    threads: demand(", " mem_mb=growing(", " runtime=growing(", " gpu=", " code="):
        assert text.count(key) == 1, key
    # Snakemake allows no benchmark on a rule whose outputs go into its cache.
    assert ("    benchmark:\n" in text) != ("    cache: True\n" in text)


def test_every_script_belongs_to_a_rule():
    used = set(re.findall(r'"\.\./scripts/([\w{}.]+)"', "".join(RULES.values())))
    kinds = {path.name.split(".")[0] for path in (ROOT / "schemas" / "kinds").glob("*.json")}
    used = {each.replace("{wildcards.kind}", kind) for each in used for kind in kinds}
    assert used == {path.name for path in (ROOT / "scripts").glob("[!_]*.py")}
