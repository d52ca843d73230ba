"""FILM: text recovery from the gradients of a client in federated learning (Gupta et al., NeurIPS 2022).

`clients`: the public model and the client that trains it on private sentences; `gradients`: what the client sends; `bag`:
words read from it; `search`: sentences from the words, by the official beam search and a better one; `reorder`: the
official reordering; `experiment`: what a run of the attack does.
"""
