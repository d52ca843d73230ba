"""AutoSeq: automatic label sequences for prompting sequence-to-sequence models (Yu et al., COLING 2022).

`prompts`: templates and targets; `decoding` and `search`: candidates, contrast, combinations; `tuning`: training with given
sequences, soft prompts and adapters, predictions; `selection`: re-ranking by development scores, splits and metrics of the
original; `pretraining`: a small T5 by span corruption; `arms` and `experiment`: what a run does.
"""
