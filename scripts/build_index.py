import reclaim.preload  # noqa: F401  (hands the job to the preloaded parent)
from _standalone import snakemake
from reclaim.job import job

with job(snakemake) as context:
    from reclaim.retrieval import build_index

    spec, inputs, encoder = snakemake.params.spec, snakemake.input, {}
    if spec["backend"] == "dense":
        from reclaim.encoders import index_encoder, model_digest

        encoder = {"encode": index_encoder(spec, inputs.model, context.device()), "encoder": model_digest(inputs.model)}
    build_index(
        inputs.data,
        spec,
        snakemake.output.index,
        state_dir=snakemake.params.state,
        progress=context.progress,
        **encoder,
    )
