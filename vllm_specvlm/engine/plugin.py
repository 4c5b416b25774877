"""Entry point of the vLLM plugin."""

from __future__ import annotations


def register() -> None:
    """Called by vLLM in every process it starts; may be called several times.

    Only teaches `EngineArgs` the method name. An engine that does not ask for it is not touched.
    """
    from vllm_specvlm.engine import configure

    configure.install()
