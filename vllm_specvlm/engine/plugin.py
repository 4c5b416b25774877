"""Entry point of the vLLM plugin."""

from __future__ import annotations


def register() -> None:
    """Called by vLLM in every process it starts; may be called several times.

    Teaches `EngineArgs` the method name, and the manager of grammars what trees are. An engine that does not ask for
    the method is not touched.
    """
    from vllm_specvlm.engine import configure, tree_grammars

    configure.install()
    tree_grammars.install()
