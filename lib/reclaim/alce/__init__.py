"""ALCE (Gao et al. 2023): answers that cite the passages they were written from, and their automatic evaluation."""
