"""What the documents quote, name and tell to type is there."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from snakemake.cli import get_argument_parser
from snakemake.utils import update_config

from reclaim.plan import targets

ROOT = Path(__file__).parents[2]
CODE = "\n".join(path.read_text() for path in sorted((ROOT / "lib").rglob("*.py")))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
QUOTED = re.findall(r"^### `(.*)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("message", QUOTED)
def test_the_messages_of_the_troubleshooting_page_are_those_of_the_code(message):
    assert message in CODE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    # Paths of this project in backticks; results, placeholders in capitals and patterns are not files here.
    named = re.findall(
        r"`((?:lib|docs|config|schemas|scripts|rules|report|benchmarks|tests|profiles|envs)/[^`\s]+)`", text
    )
    files = [name for name in named if not re.search(r"[*A-Z{]|\.\.\.", name.replace("README", ""))]
    missing = [name for name in files if not (ROOT / name.partition("::")[0]).exists()]
    assert missing == []
    links = re.findall(r"\]\((?!http|#|mailto)([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


# The blocks of these pages are run whole (tests/dag/test_recipes.py); they make the files that their commands name.
RECIPES = ("extending.md", "new-system.md")
RULES = "".join(path.read_text() for path in [ROOT / "Snakefile", *sorted((ROOT / "rules").glob("*.smk"))])


def command_lines(page):
    """The lines of a page's blocks of commands, without what each prints."""
    blocks = re.findall(r"^```(?:bash|console)?\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def merged(paths):
    """The configuration under overlays, as the Snakefile puts it together."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    for path in paths:
        overlay = yaml.safe_load((ROOT / path).read_text())
        for part in overlay.get("parts", []):
            update_config(config, yaml.safe_load((ROOT / part).read_text()))
        update_config(config, overlay)
    return config


def has_rule(target, results):
    """Whether a target is an output of a rule, by the form of its path."""
    outputs = re.findall(r'f"\{RESULTS\}(/[^"]+)"', RULES)
    forms = [
        "".join("[^/]+" if "{" in part else re.escape(part) for part in re.split(r"(\{\{\w+\}\})", out))
        for out in outputs
    ]
    return any(re.fullmatch(re.escape(results) + form, target) for form in forms)


SNAKEMAKE = [
    pytest.param(line, id=f"{page.name}: {line}")
    for page in PAGES
    if page.name not in RECIPES
    for line in command_lines(page)
    if re.match(r"(\w+=\S+ )*snakemake\b", line)
]


@pytest.mark.parametrize("line", SNAKEMAKE)
def test_a_snakemake_command_can_be_typed(line):
    words = shlex.split(line, comments=True)
    options = get_argument_parser().parse_args(words[words.index("snakemake") + 1 :])
    config = merged(options.configfile)
    named = set(re.findall(r"^rule (\w+):", RULES, flags=re.MULTILINE)) | set(targets(config))
    named |= {f"fetch_{target}" for target in targets(config)}
    unknown = [each for each in options.targets if each not in named and not has_rule(each, config["results"])]
    assert unknown == []
    assert options.workflow_profile is None or (ROOT / options.workflow_profile / "config.yaml").exists()


def test_make_targets_and_programs_that_pages_name_exist():
    made = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        for line in command_lines(page):
            if match := re.match(r"make\b *(\w*)", line):
                assert not match[1] or match[1] in made, f"{page.name}: {line}"
            for path in re.findall(r"(?:^|\s)((?:tests|scripts|benchmarks|\.ci)/\S+)", line.partition("#")[0]):
                assert page.name in RECIPES or (ROOT / path).exists(), f"{page.name}: {line}"


def test_the_page_on_configuration_names_every_key():
    keys = json.loads((ROOT / "schemas" / "config.schema.json").read_text())["properties"]
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert [key for key in keys if f"`{key}`" not in page] == []
