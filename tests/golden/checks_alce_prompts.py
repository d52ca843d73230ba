"""Checks of the ALCE vectors that hold prompts, loops, retrieval and reranking."""

CHECKS = []
