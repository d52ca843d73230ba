import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    if not context.spread():
        import pandas as pd

        from reclaim.data import iter_texts
        from reclaim.io import atomic_path, write_json
        from reclaim.models import load_tokenizer
        from reclaim.parallel import is_main
        from reclaim.pretrain import pretrain

        inputs = snakemake.input
        tokenizer = load_tokenizer(inputs.tokenizer)
        model, training = pretrain(
            snakemake.params.spec,
            iter_texts(inputs.data, ["train"]),
            tokenizer,
            held_out=iter_texts(inputs.data, ["test"]),
            pmi=pd.read_parquet(inputs.pmi) if "pmi" in inputs.keys() else None,
            device=context.device(),
            state_path=snakemake.params.state,
            run=context.identity(),
            progress=context.progress,
        )
        context.count(tokens=training["input_tokens"], steps=len(training["loss"]))
        if is_main():
            with atomic_path(snakemake.output.model, directory=True) as folder:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                write_json(training, folder / "training.json")
