"""What the documents quote and point to is there."""

import re
from pathlib import Path

import pytest

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
