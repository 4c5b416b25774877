"""The models that come with the plugin, by name, for the command line."""

from __future__ import annotations

from vllm_specvlm.cli.console import UserError

PREFIX = "specvlm/"


def resolve(name: str) -> str:
    """The folder of a model that comes with the plugin (built on first use); any other name as it is.

    Raises UserError for a `specvlm/` name that does not exist or cannot be built.
    """
    if not name.startswith(PREFIX):
        return name
    from vllm_specvlm import zoo

    try:
        return zoo.resolve(name)
    except zoo.ZooError as error:
        raise UserError(str(error)) from error
