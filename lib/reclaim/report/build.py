"""Assemble `results/report.html`: one file, no script, nothing fetched, the same bytes for the same tables.

Every text goes through Jinja's autoescape; only plots made by `figures` are inserted as markup, and matplotlib
escapes the text within them. A content security policy in the page forbids scripts and requests, whatever a table
holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from reclaim.report import (
    figures_alce,
    figures_autoseq,
    figures_convqa,
    figures_cringe,
    figures_film,
    figures_icl,
    figures_mezo,
    figures_mlm_masking,
    figures_stm_unet,
    figures_transformer_dr,
)
from reclaim.report.cells import slug
from reclaim.report.claim_view import VERDICTS, claim_view, forests, in_order, section_id, summary_groups
from reclaim.report.figures import Exhibit
from reclaim.report.run_view import cost_table, run_facts
from reclaim.report.system import System, SystemTables

# The systems that have figures, in the order of the page. A paper that only the tables name shows its claims alone.
SYSTEMS = (
    figures_mlm_masking.SYSTEM,
    figures_mezo.SYSTEM,
    figures_icl.SYSTEM,
    figures_autoseq.SYSTEM,
    figures_alce.SYSTEM,
    figures_stm_unet.SYSTEM,
    figures_transformer_dr.SYSTEM,
    figures_film.SYSTEM,
    figures_cringe.SYSTEM,
    figures_convqa.SYSTEM,
)


def build_report(
    claims: pd.DataFrame,
    metrics: pd.DataFrame,
    costs: pd.DataFrame,
    curves: pd.DataFrame,
    manifest: dict[str, Any],
    template_path: str | Path,
    pictures: Mapping[str, Mapping[str, bytes]] | None = None,
    systems: Sequence[System] = SYSTEMS,
) -> str:
    """Give the whole page as text.

    `claims`, `metrics` and `costs` are the run's tables and may be empty. `curves` has the columns paper, experiment,
    variant, seed, step, measure, value, unit, one curve for each variant, seed and measure (`pretrain_loss`,
    `dev_score`). `manifest` is that of `provenance.run_manifest`, with `overlay` (name of the configuration) and
    `started` (ISO 8601) where known; what is absent is said to be unknown. `pictures`: paper -> name -> PNG bytes.
    """
    template_path = Path(template_path)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template_path.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    views = [claim_view(row, metrics, costs, manifest) for row in in_order(claims, [system.key for system in systems])]
    sections = []
    for system in _all_systems(systems, claims, metrics):
        own = [_of_paper(frame, system.key) for frame in (claims, metrics, costs, curves)]
        tables = SystemTables(own[0], own[1], own[2], own[3], (pictures or {}).get(system.key, {}))
        sections.append(_section(system, views, tables))
    versions = sorted(manifest.get("versions", {}).items())
    page = environment.get_template(template_path.name).render(
        run=run_facts(manifest),
        counts=[(name, *VERDICTS[name], sum(view["verdict"] == name for view in views)) for name in VERDICTS],
        groups=summary_groups(views),
        overview=[_exhibit_view(forest, "all", "all systems") for forest in forests(views, "all")],
        sections=sections,
        costs=cost_table(costs, manifest),
        versions=[(name, version or "not installed") for name, version in versions],
        config=manifest.get("config", ""),
    )
    return page.strip() + "\n"


def _all_systems(systems: Sequence[System], claims: pd.DataFrame, metrics: pd.DataFrame) -> list[System]:
    """Give the systems that have figures, and after them those that only the tables name."""
    known = {system.key for system in systems}
    named = {paper for frame in (claims, metrics) if not frame.empty for paper in frame["paper"].unique()}
    return [*systems, *(System(key, key, "", "", "", (), lambda _: []) for key in sorted(named - known))]


def _section(system: System, views: Sequence[dict[str, Any]], tables: SystemTables) -> dict[str, Any]:
    """Collect one system's section."""
    mine = [view for view in views if view["paper"] == system.key]
    in_run = not (tables.metrics.empty and tables.costs.empty)
    exhibits = forests(mine, slug(system.key)) + (system.exhibits(tables) if in_run else [])
    return {
        "id": section_id(system.key),
        "system": system,
        "in_run": in_run,
        "exhibits": [
            _exhibit_view(exhibit, slug(system.key), system.title) for exhibit in exhibits if not exhibit.missing
        ],
        "missing": [exhibit for exhibit in exhibits if exhibit.missing],
        "claims": mine,
        "scale_notes": list(dict.fromkeys(view["scale_note"] for view in mine if view["scale_note"])),
        "open": [view for view in mine if view["verdict"] not in ("supported", "contradicted")],
    }


def _exhibit_view(exhibit: Exhibit, system: str, title: str) -> dict[str, Any]:
    """Make a plot's element an image with a text alternative, and its key an id; `label` names its table on the page."""
    svg = exhibit.svg.replace("<svg ", Markup('<svg role="img" aria-label="{}" ').format(exhibit.alt), 1)
    name = slug(f"figure-{system}-{exhibit.key}")
    return {"exhibit": exhibit, "id": name, "svg": Markup(svg), "label": f"{exhibit.title} ({title})"}


def _of_paper(frame: pd.DataFrame, paper: str) -> pd.DataFrame:
    return frame[frame["paper"] == paper] if not frame.empty else frame
