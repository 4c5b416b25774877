"""The exceptions of training."""

from __future__ import annotations


class RecipeError(ValueError):
    """The recipe, or what it names, cannot be trained. The message is one sentence that says what to do."""


class TrainingError(RuntimeError):
    """The run stops. The message is one sentence that says why, what is kept and what to do."""
