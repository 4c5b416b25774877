"""Entry point of the vLLM plugin."""

from __future__ import annotations


def register() -> None:
    """Called by vLLM in every process it starts; may be called several times.

    Teaches `EngineArgs` the method name, requests what they may ask for, and the manager of grammars what trees are;
    and chooses where processed pictures are kept.
    An engine that does not ask for the method is not touched.
    """
    from vllm_specvlm.engine import admission, configure, processed_pictures, tree_grammars

    configure.install()
    admission.install()
    tree_grammars.install()
    processed_pictures.install()
