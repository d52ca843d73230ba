"""The run itself as the page shows it: where and when, and what each stage cost."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import pandas as pd

from reclaim.report.cells import number_of, text_of
from reclaim.report.figures import fixed

# The order of the chain; a stage that is not named comes last.
STAGES = (
    "data", "index", "tokenizer", "pmi", "pretrain", "finetune", "generate", "attack", "evaluate", "memory",
    "trajectory",
)  # fmt: skip
MEASURES = ("cpu_s", "wall_s", "peak_mem_bytes")


def run_facts(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Give the facts that stand at the top of the page, as pairs of term and value."""
    machine = manifest.get("machine", {})
    ram, cores = number_of(machine.get("ram_bytes")), number_of(machine.get("cores"))
    described = [
        text_of(machine.get("cpu")),
        f"{cores:.0f} cores" if math.isfinite(cores) else "",
        f"{ram / 2**30:.1f} GiB of memory" if math.isfinite(ram) else "",
        *map(str, machine.get("gpus") or (["no GPU"] if "gpus" in machine else [])),
    ]
    seconds = elapsed(manifest)
    facts = [
        ("Configuration", text_of(manifest.get("overlay"))),
        ("Commit", text_of(manifest.get("git_commit")) + (" and local changes" if manifest.get("git_dirty") else "")),
        ("Machine", ", ".join(part for part in described if part)),
        ("Started", text_of(manifest.get("started")).replace("T", " ")),
        ("Ended", text_of(manifest.get("ended")).replace("T", " ")),
        ("Took", f"{seconds / 60:,.1f} minutes" if seconds else ""),
    ]
    return [(term, value or "unknown") for term, value in facts]


def elapsed(manifest: dict[str, Any]) -> float | None:
    """Give the seconds from start to end, or None where either is unknown."""
    try:
        started, ended = (datetime.fromisoformat(str(manifest[key])) for key in ("started", "ended"))
        seconds = (ended - started).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None
    return seconds if seconds > 0 else None


def cost_table(costs: pd.DataFrame, manifest: dict[str, Any]) -> dict[str, Any]:
    """Sum the costs by stage and in all: `rows` of text, their `total`, and a `note` on how busy the cores were."""
    table = costs if costs.empty else costs[costs["measure"].isin(MEASURES)]
    if table.empty:
        return {"rows": [], "total": None, "note": "No cost was recorded in this run."}
    stages = {name: part for name, part in table.groupby("stage", sort=True)}
    order = [name for name in STAGES if name in stages] + [name for name in stages if name not in STAGES]
    return {
        "rows": [_stage(name, stages[name]) for name in order],
        "total": _stage("all stages", table),
        "note": _utilisation(table, manifest),
    }


def _stage(name: str, table: pd.DataFrame) -> dict[str, str]:
    cpu, wall, peak = (table[table["measure"] == measure]["value"] for measure in MEASURES)
    return {
        "stage": name,
        "jobs": f"{len(table[['stage', 'job']].drop_duplicates()):,}",
        "cpu": fixed(cpu.sum(), 1),
        "wall": fixed(wall.sum(), 1),
        "busy": fixed(cpu.sum() / wall.sum(), 2) if wall.sum() else "–",
        "peak": fixed(peak.max() / 2**20, 0),
    }


def _utilisation(table: pd.DataFrame, manifest: dict[str, Any]) -> str:
    """Say which share of the machine's cores the run's jobs used, where that can be known."""
    seconds, cores = elapsed(manifest), number_of(manifest.get("machine", {}).get("cores"))
    if not seconds or not cores > 0:
        return "Start, end or cores of the run are unknown, so no core utilisation is given."
    cpu = table[table["measure"] == "cpu_s"]["value"].sum()
    share = cpu / (cores * seconds)
    if share > 1.05:
        return (
            f"The jobs' {cpu:,.0f} CPU s are more than {cores:.0f} cores × {seconds:,.0f} s can hold: part of the "
            "results was made by an earlier run, so no core utilisation is given."
        )
    used = f"{cpu:,.0f} CPU s over {cores:.0f} cores × {seconds:,.0f} s"
    return f"Core utilisation of the whole run: {used}, that is {100 * share:.0f} %."
