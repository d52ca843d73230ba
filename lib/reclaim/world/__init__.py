"""The embedded world: small generated data sets, so that the default run needs no network.

One lexicon (`lexicon`), one way to seed, split and write canonical tables (`tables`), one register (`generators`), and
one module per family of tasks. `generators.get(name)` gives a `tables.Generator`, whose `generate` is a pure function

    generate(split_sizes: dict[str, int], seed: int, **parameters) -> dict[str, pandas.DataFrame]

Texts are words separated by single spaces, punctuation included, so that a tokenizer can give each word one token.
Because a generator knows the facts behind its texts, modules also offer exact judges (`household.judge`) and exact
references (`idioms.posterior_accuracy`). Nothing here imports torch or transformers.
"""
