"""How well texts suit an observation, by their words or by their meaning."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import bm25s

Relevance = Callable[[tuple[str, ...], str], Sequence[float]]
"""One number per text for an observation; more is better."""


class RelevanceError(RuntimeError):
    """A model of embeddings that cannot be used; the message says why and what to do."""


def relevance(retrieval: str) -> Relevance:
    """What ``--retrieval`` names.

    Raises:
        RelevanceError: The model, or its package, cannot be had.
    """
    return bm25 if retrieval == "bm25" else Embeddings(retrieval)


def bm25(texts: tuple[str, ...], observation: str) -> Sequence[float]:
    """Likeness in words (Robertson and Zaragoza 2009)."""
    [query] = _words([observation])
    index = _index(texts)
    scores: Sequence[float] = index.get_scores(query) if query and index else [0.0] * len(texts)
    return scores


@lru_cache(maxsize=16)
def _index(texts: tuple[str, ...]) -> bm25s.BM25 | None:
    """Made once for a pool, not for every observation; ``None`` if there is no word in it."""
    words = _words(texts)
    if not any(words):
        return None
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    return index


def _words(texts: Sequence[str]) -> list[list[str]]:
    words: list[list[str]] = bm25s.tokenize(
        list(texts), stopwords=None, return_ids=False, show_progress=False
    )
    return words


class Embeddings:
    """Likeness in meaning: the cosine of the embeddings by a sentence-transformers model."""

    def __init__(self, model: str) -> None:
        """Load the model, from safetensors and without code of its own.

        Args:
            model: Its folder, or its name at the hub.

        Raises:
            RelevanceError: The model, or the package, cannot be had.
        """
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise RelevanceError(
                f"retrieval by {model!r} needs a package: pip install 'opcd-gym[embeddings]'; bm25 needs none"
            ) from error
        try:
            self._model: Any = SentenceTransformer(model, model_kwargs={"use_safetensors": True})
            self._encode("Does it work?")
        except Exception as error:  # whatever the package and the hub's client raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise RelevanceError(
                f"retrieval {model!r} is neither bm25 nor a sentence-transformers model that can be loaded: "
                f"{reason}"
            ) from error
        self._embed = lru_cache(maxsize=4096)(self._encode)

    def __call__(self, texts: tuple[str, ...], observation: str) -> Sequence[float]:
        """See ``Relevance``; each text is embedded once."""
        embedded = self._embed(observation)
        return [float(self._embed(text) @ embedded) for text in texts]

    def _encode(self, text: str) -> Any:
        return self._model.encode(text, normalize_embeddings=True, show_progress_bar=False)
