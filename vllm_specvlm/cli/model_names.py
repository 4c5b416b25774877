"""The models that come with the plugin, by name: `specvlm/reference-target` and `specvlm/reference-draft`."""

from __future__ import annotations

PREFIX = "specvlm/"


def resolve(name: str) -> str:
    """The folder of a model that comes with the plugin (built on first use); any other name as it is.

    Raises UserError for a `specvlm/` name that does not exist or cannot be built.
    """
    if not name.startswith(PREFIX):
        return name
    from vllm_specvlm import zoo
    from vllm_specvlm.cli.console import UserError

    try:
        return str(zoo.resolve(name))
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(str(error)) from error
