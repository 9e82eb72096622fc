"""Which kind of text is this: a linear classifier over hashed character n-grams, by scikit-learn.

Light enough for any owner's machine and good at telling domains apart; it reads the first bytes of a document only.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import MalformedError, NotFoundError

_READ_CHARACTERS: Final = 4000
"""How much of a document is looked at."""
_FEATURES: Final = 2**18


class TextClassifier:
    """Fitted on documents of two kinds or more."""

    def __init__(self, texts: Mapping[str, Sequence[str]], *, seed: int) -> None:
        """Fit.

        Args:
            texts: Documents of each kind.
            seed: Of the solver.

        Raises:
            MalformedError: fewer than two kinds, one without documents, or only blank ones.
            NotFoundError: scikit-learn is not installed.
        """
        if len(texts) < 2 or not all(texts.values()):
            raise MalformedError("a classifier needs documents of two kinds or more; one of these has none")
        try:
            from sklearn.feature_extraction.text import HashingVectorizer
            from sklearn.linear_model import LogisticRegression
        except ImportError as error:
            raise NotFoundError("scikit-learn is not installed; pip install 'concord-moe[classify]'") from error
        self.kinds = sorted(texts)
        self._features = HashingVectorizer(
            analyzer="char_wb", ngram_range=(2, 4), n_features=_FEATURES, alternate_sign=False, lowercase=False
        )
        self._model = LogisticRegression(C=30.0, class_weight="balanced", max_iter=200, random_state=seed)
        labels = [kind for kind in self.kinds for _ in texts[kind]]
        vectors = self._vectors([text for kind in self.kinds for text in texts[kind]])
        if not vectors.nnz:
            raise MalformedError(f"no text: all documents are blank in their first {_READ_CHARACTERS} characters")
        # Weights of what no document has stay 0; the solver would carry them through every step.
        self._occurring = np.unique(vectors.indices)
        self._model.fit(vectors[:, self._occurring], labels)

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Of each kind (in order of `kinds`) for each text: [texts, kinds]."""
        return np.asarray(self._model.predict_proba(self._vectors(texts)[:, self._occurring]), np.float64)

    def _vectors(self, texts: Sequence[str]) -> Any:
        return self._features.transform([text[:_READ_CHARACTERS] for text in texts])
