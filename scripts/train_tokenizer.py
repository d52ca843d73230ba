import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    from reclaim.data import iter_texts
    from reclaim.io import atomic_path
    from reclaim.tokenization import train_tokenizer

    spec = snakemake.params.spec
    texts = [text for folder in snakemake.input.data for text in iter_texts(folder)]
    tokenizer = train_tokenizer(
        spec["family"], texts, extra_words=spec.get("words", []), vocab_size=spec.get("vocab_size")
    )
    with atomic_path(snakemake.output.tokenizer, directory=True) as folder:
        tokenizer.save_pretrained(folder)
