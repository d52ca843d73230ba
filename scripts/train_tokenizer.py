import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    from reclaim.data import iter_texts
    from reclaim.io import atomic_path
    from reclaim.models import load_tokenizer
    from reclaim.tokenization import train_tokenizer

    spec, inputs = snakemake.params.spec, snakemake.input
    if "model" in spec:
        tokenizer = load_tokenizer(inputs.model)
    else:
        # A vocabulary of whole words must hold those of every split; an ordinary one is learnt from training text alone.
        splits = ["train"] if "vocab_size" in spec else ["train", "dev", "test"]
        texts = [text for folder in inputs.data for text in iter_texts(folder, splits)]
        tokenizer = train_tokenizer(spec["family"], texts, spec.get("vocab_size"), spec.get("words", ()))
    with atomic_path(snakemake.output.tokenizer, directory=True) as folder:
        tokenizer.save_pretrained(folder)
