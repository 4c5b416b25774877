"""`specvlm batch`: a file of questions about pictures answered by engines on a Ray cluster."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_specvlm.cli.console import UserError, say
from vllm_specvlm.cli.model_names import resolve
from vllm_specvlm.cli.progress import Progress

if TYPE_CHECKING:
    from vllm_specvlm.cluster.batch import Outcome

_DESCRIPTION = """\
Answer a file of questions with one or more engines on a Ray cluster: the one
that runs already (RAY_ADDRESS, `ray start`), else one on this machine alone.
"""
_EPILOG = """\
All further options are those of vLLM's engine, as `specvlm serve` takes them.

A line of the input is one of OpenAI's batch format for /v1/chat/completions,
or a short one; further keys ("max_tokens", "temperature") go along:
  {"custom_id": "7", "prompt": "What is this?", "image": "pictures/7.png"}
The output has a line for each, in OpenAI's format, in the order of finishing.
Started again, the command continues the output. Questions with an error are
tried again, and then written down with it; exit status 1 says there are some.

example:
  specvlm batch specvlm/reference-target --input questions.jsonl \\
    --output answers.jsonl --engines 2 --kv-cache-memory-bytes 1G \\
    --speculative-config '{"method": "specvlm", "model": "specvlm/reference-draft"}'
"""


def _engines(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text, re.ASCII)
    fewest, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= fewest <= most:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number of engines nor a range such as 1:4")
    return fewest, most


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 up")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 up")
    return value


def parser() -> Any:
    """vLLM's parser of engine options, with the command's own before them."""
    from vllm import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    result = FlexibleArgumentParser(
        prog="specvlm batch",
        usage="specvlm batch MODEL --input FILE --output FILE [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    own = result.add_argument_group("batch")
    own.add_argument("model_tag", metavar="MODEL", help="the target: a folder or a name")
    own.add_argument("--input", metavar="FILE", type=Path, required=True, help="the questions, one a line")
    own.add_argument("--output", metavar="FILE", type=Path, required=True, help="the answers, made or continued")
    own.add_argument("--pictures", metavar="DIR", type=Path, help="folder of the pictures; default: the input's")
    own.add_argument("--engines", metavar="N[:M]", type=_engines, default=(1, 1), help="how many; default 1")
    own.add_argument("--batch-size", metavar="N", type=_count, default=32, help="questions handed over together")
    own.add_argument("--attempts", metavar="N", type=_count, default=3, help="how often to try; default 3")
    own.add_argument("--cpus", metavar="N", type=_share, default=1.0, help="CPUs of an engine, for Ray; default 1")
    own.add_argument("--gpus", metavar="N", type=_share, default=0.0, help="GPUs of an engine, for Ray; default 0")
    own.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    return AsyncEngineArgs.add_cli_args(result)


def engine_options(arguments: argparse.Namespace, defaults: argparse.Namespace, pictures: Path) -> dict[str, Any]:
    """The engine options that differ from vLLM's defaults, with models found and the pictures allowed."""
    from vllm import AsyncEngineArgs

    names = [field.name for field in dataclasses.fields(AsyncEngineArgs) if hasattr(arguments, field.name)]
    options = {name: getattr(arguments, name) for name in names}
    options = {name: value for name, value in options.items() if value != getattr(defaults, name)}
    options["model"] = resolve(arguments.model_tag)
    options.setdefault("served_model_name", [arguments.model_tag])
    options.setdefault("allowed_local_media_path", str(pictures))
    speculative = options.get("speculative_config")
    if speculative and isinstance(draft := speculative.get("model"), str):
        options["speculative_config"] = {**speculative, "model": resolve(draft)}
    return options


def run(options: argparse.Namespace, engine: Mapping[str, Any], pictures: Path) -> Outcome:
    """Answer the file. Raises UserError for anything that is wrong with the files, the engine or the cluster."""
    import ray

    from vllm_specvlm.cluster import batch
    from vllm_specvlm.cluster.processor import Processor

    try:
        asked = batch.questions(options.input, pictures)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    processor = Processor(
        engine,
        engines=options.engines,
        batch_size=options.batch_size,
        attempts=options.attempts,
        cpus=options.cpus,
        gpus=options.gpus,
    )
    try:
        ray.init(log_to_driver=False, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"The Ray cluster cannot be joined or started ({error}); see RAY_ADDRESS.") from error
    progress = Progress("batch")
    try:
        outcome = batch.run(
            asked, options.output, processor, lambda done: progress.show(done / len(asked), f"{done} of {len(asked)}")
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(str(error)) from error
    finally:
        progress.end()
        ray.shutdown()
    return outcome


def main(argv: Sequence[str]) -> int:
    """Answer a file and say what became of it."""
    try:
        import ray  # noqa: F401

        line = parser()
    except ModuleNotFoundError as error:
        raise UserError(f"{error}: install `pip install 'vllm-specvlm[cpu,ray]'` or `[cuda,ray]`.") from error
    options = line.parse_args(list(argv))
    nothing = line.parse_args([options.model_tag, "--input", "-", "--output", "-"])
    pictures = (options.pictures or options.input.parent).absolute()
    outcome = run(options, engine_options(options, nothing, pictures), pictures)
    if options.json:
        found = {"skipped": outcome.skipped, "answered": outcome.answered, "failed": outcome.failed}
        print(json.dumps({"output": str(options.output), **found}))
    else:
        earlier = f", {outcome.skipped} were there" if outcome.skipped else ""
        say(f"{options.output}: {outcome.answered} answered{earlier}, {outcome.failed} with an error")
    return 1 if outcome.failed else 0
