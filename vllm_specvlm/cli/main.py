"""The dispatcher of `specvlm`: finds the command and hands it the rest of the line.

Importing this module loads nothing but the standard library, so that help, version and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import vllm_specvlm
from vllm_specvlm.cli.console import UserError, say

COMMANDS = {
    "serve": "an OpenAI-compatible server: everything `vllm serve` takes",
    "batch": "a file of questions about pictures answered by engines on a Ray cluster",
    "demo": "answer a question about a picture, plainly and with specvlm, and compare",
    "calibrate": "measure what steps cost here, for the planner; or simulate recorded traffic with it",
    "train": "train a feature head, an early exit or a draft VLM for a target, from a recipe",
    "convert": "turn a public draft head (EAGLE-1, -2, -3, speculators, ViSpec) into one for this plugin",
    "trace": "answer a question about a picture and write down every step, as a page to look at",
    "doctor": "check this installation, and a pair of models, and say what to do",
    "selftest": "check kernels and answers on this machine, above all on a GPU, and write a report to send",
}


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="specvlm",
        usage="specvlm COMMAND [options]",
        description=f"{vllm_specvlm.__doc__}\n\ncommands (specvlm COMMAND --help says more):\n{commands}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"specvlm {vllm_specvlm.__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 trouble found, 2 a mistake in the command line."""
    line = list(sys.argv[1:] if argv is None else argv)
    command = line[0] if line and line[0] in COMMANDS else _parser().parse_args(line[:1] or ["--help"]).command
    module = importlib.import_module(f"vllm_specvlm.cli.{command}")
    try:
        status: int = module.main(line[1:])
    except UserError as error:
        say(f"specvlm {command}: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    return status
