"""Search within the documents of one question: for post-hoc citations and for searching while writing.

Source: Gao et al. 2023 (ALCE), section 4, and the official `searcher.py`: TF-IDF (scikit-learn's defaults) over `title text`,
or an encoder (GTR) over `title. text`; the best document wins, the first one where several are best. The official code
embeds all documents anew at each search, and stops with an error where TF-IDF is chosen; here documents are embedded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Document = Mapping[str, Any]
Encode = Callable[[Sequence[str]], np.ndarray]


class Search(Protocol):
    """Best document (zero-based) for each query; raises IndexError where there are no documents."""

    def best(self, queries: Sequence[str]) -> list[int]: ...


MakeSearch = Callable[[Sequence[Document]], Search]


class TfidfSearch:
    """Cosine of TF-IDF vectors."""

    def __init__(self, documents: Sequence[Document]):
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.vectorizer = TfidfVectorizer()
        self.documents = self.vectorizer.fit_transform([f"{each['title']} {each['text']}" for each in documents])

    def best(self, queries: Sequence[str]) -> list[int]:
        if not queries:
            return []
        scores = (self.vectorizer.transform(queries) @ self.documents.T).toarray()
        return np.argmax(scores, axis=1).tolist()


class EncoderSearch:
    """Dot product of an encoder's vectors."""

    def __init__(self, documents: Sequence[Document], encode: Encode):
        self.encode = encode
        self.documents = encode([f"{each['title']}. {each['text']}" for each in documents])

    def best(self, queries: Sequence[str]) -> list[int]:
        if not queries:
            return []
        return np.argmax(self.encode(queries) @ self.documents.T, axis=1).tolist()
