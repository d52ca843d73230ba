import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    from reclaim.data import iter_texts
    from reclaim.io import write_parquet
    from reclaim.pmi import build_vocabulary, count_ngrams, score_ngrams

    spec = snakemake.params.spec
    lines = (text.split() for text in iter_texts(snakemake.input.data, ["train"]))
    scores = score_ngrams(count_ngrams(lines, count_above=spec["count_above"]), power=spec["power"])
    write_parquet(build_vocabulary(scores, size=spec["size"]), snakemake.output.vocabulary)
