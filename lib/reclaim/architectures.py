"""Which architectures can be built from scratch, and the language-model family each belongs to."""

ARCHITECTURES = {
    "roberta-prelayernorm": ("RobertaPreLayerNormConfig", "masked"),
    "roberta": ("RobertaConfig", "masked"),
    "opt": ("OPTConfig", "causal"),
    "gpt2": ("GPT2Config", "causal"),
    "t5": ("T5Config", "seq2seq"),
}
"""Architecture -> (config class in `transformers`, family)."""
