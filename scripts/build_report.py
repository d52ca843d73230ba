import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    from pathlib import Path

    import pandas as pd

    from reclaim.io import atomic_path, read_json
    from reclaim.outcome import read_pictures
    from reclaim.provenance import run_manifest
    from reclaim.report.build import build_report

    inputs = snakemake.input
    tables = {name: pd.read_parquet(inputs[name]) for name in ("claims", "metrics", "costs", "curves")}
    config = snakemake.params.config
    manifest = {**run_manifest(config), "overlay": config["overlay"]}
    if Path(snakemake.params.started).exists():  # not so when this script is run by hand
        manifest |= read_json(snakemake.params.started)
    pictures = read_pictures(inputs.folders)
    page = build_report(**tables, manifest=manifest, template_path=inputs.template, pictures=pictures)
    with atomic_path(snakemake.output.page) as path:
        path.write_text(page, encoding="utf-8")
