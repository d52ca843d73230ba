"""Linear maps that preserve neighbourhoods: LPP (He and Niyogi 2003) and NPE (He, Cai, Yan and Zhang 2005).

Both fit on a graph of the k nearest neighbours, after a PCA to a share of the variance, by one generalised symmetric
eigenproblem, whose right side gets a ridge of 1e-6 times its trace. They are the linear counterparts of Laplacian
eigenmaps and of LLE, and give codes of new rows, which those do not.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.validation import check_is_fitted, validate_data

from reclaim.errors import InputError

RIDGE = 1e-6


class LocalityMap(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """What LPP and NPE share. n_neighbors: k; energy: share of the variance that the PCA before them keeps, in at least
    `n_components` directions.
    """

    def __init__(self, n_components: int = 2, *, n_neighbors: int = 5, energy: float = 0.98):
        self.n_components = n_components
        self.n_neighbors = n_neighbors
        self.energy = energy

    def fit(self, X, y=None):
        """Fit on rows (n, p); `y` is ignored. Raises InputError for more components than min(n - 1, p)."""
        X = validate_data(self, X, dtype=np.float64)
        if not 1 <= self.n_neighbors < len(X):
            raise InputError(f"{type(self).__name__}(n_neighbors=...)", str(self.n_neighbors), "from 1 to n - 1")
        most = min(len(X) - 1, X.shape[1])
        if not 1 <= self.n_components <= most:
            raise InputError(f"{type(self).__name__}(n_components=...)", str(self.n_components), f"from 1 to {most}")
        kept = PCA(most, svd_solver="full").fit(X).explained_variance_ratio_.cumsum()
        directions = max(self.n_components, int(np.searchsorted(kept, self.energy)) + 1)
        self.pca_ = PCA(min(directions, most), svd_solver="full").fit(X)
        rows = self.pca_.transform(X)
        left, right = self._problem(rows, NearestNeighbors(n_neighbors=self.n_neighbors).fit(rows))
        right += RIDGE * np.trace(right) * np.eye(len(right))
        _, vectors = eigh(left, right, subset_by_index=(0, self.n_components - 1))
        self.projection_ = vectors
        return self

    def transform(self, X) -> np.ndarray:
        """Codes (n, n_components) of rows (n, p)."""
        check_is_fitted(self)
        return self.pca_.transform(validate_data(self, X, dtype=np.float64, reset=False)) @ self.projection_

    @property
    def _n_features_out(self) -> int:
        return self.n_components


class LPP(LocalityMap):
    """Locality preserving projections: X'LX a = w X'DX a with weights of 1 on the symmetric neighbour graph."""

    def _problem(self, rows: np.ndarray, search: NearestNeighbors) -> tuple[np.ndarray, np.ndarray]:
        graph = search.kneighbors_graph().toarray()
        graph = np.maximum(graph, graph.T)
        degree = graph.sum(1)
        return rows.T @ (degree[:, None] * rows - graph @ rows), rows.T @ (degree[:, None] * rows)


class NPE(LocalityMap):
    """Neighbourhood preserving embedding: X'MX a = w X'X a, where M = (I - W)'(I - W) and W are the weights of LLE."""

    def _problem(self, rows: np.ndarray, search: NearestNeighbors) -> tuple[np.ndarray, np.ndarray]:
        residual = rows.copy()
        for place, near in enumerate(search.kneighbors(return_distance=False)):
            offsets = rows[near] - rows[place]
            gram = offsets @ offsets.T
            # More neighbours than dimensions leave the weights open; the usual ridge of LLE chooses small ones.
            gram += 1e-3 * max(np.trace(gram), 1e-12) * np.eye(len(near))
            weights = np.linalg.solve(gram, np.ones(len(near)))
            residual[place] -= weights / weights.sum() @ rows[near]
        return residual.T @ residual, rows.T @ rows
