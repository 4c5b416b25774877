"""What a drafter is shown in the place of a request's pictures: run inside a worker by `drafters.py`."""

from __future__ import annotations

from typing import Any

PICTURES = ("right", "wrong", "none")


def show(worker: Any, pictures: str) -> None:
    """From now on the drafter sees the `right` pictures, some other request's (`wrong`), or `none`; the target always
    sees the right ones.

    Raises:
        ValueError: it is an early exit, which sees what its target sees, or lookup, which sees nothing.
    """
    drafter = worker.model_runner.drafter._model
    source = getattr(drafter, "_pictures", None) or getattr(drafter, "_vision", None)
    if source is None:
        if pictures != "right":
            raise ValueError("This drafter looks at no pictures of its own; ask for --pictures right.")
        return
    vars(source).pop("get", None)
    vars(source).pop("embeddings", None)
    if hasattr(source, "embeddings"):
        stock = source.embeddings

        def embeddings(features: Any) -> dict[str, Any]:
            seen = stock(features)
            return {key: found for key in seen if (found := _other(source._cache, key, pictures)) is not None}

        if pictures != "right":
            source.embeddings = embeddings
    elif pictures != "right":
        source.get = lambda key: _other(source._kept, key, pictures)


def _other(kept: Any, identifier: str, pictures: str) -> Any:
    """Another picture with as many visual tokens, the one kept longest."""
    if pictures == "none":
        return None
    mine = kept.get(identifier)
    others = (other for key, other in kept.items() if key != identifier and mine is not None)
    return next((other for other in others if other.shape == mine.shape), None)
