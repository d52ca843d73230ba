"""FILM: text recovery from the gradients of a client in federated learning (Gupta et al., NeurIPS 2022).

The attack: `texts`: sentences, batches and decoys of a seed; `clients`: the public model and the client that trains it on
private sentences; `gradients`: what the client sends; `bag`: words read from it; `search`: a sentence from the words, by the
official beam search; `start_search`: the same by a beam for each start token; `reorder` and `reorder_scores`: the official
reordering; `attack`: one attack on one batch, with its controls; `experiment`: what a run does.

Against it: `defences` and `rivals` (gradient matching), the stronger attackers of `span` and `scalars`, put together in
`attackers`, `switch_over` and `defences_experiment`.
"""
