"""`specvlm convert`: a public draft head into a checkpoint that this plugin drafts with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_specvlm.cli.console import UserError, say
from vllm_specvlm.cli.model_names import resolve

if TYPE_CHECKING:
    from vllm_specvlm.train.convert.conversion import Converted

_DESCRIPTION = """\
Convert a downloaded draft head to the format that this plugin trains and
serves: EAGLE-1 and EAGLE-2, EAGLE-3, both as the speculators library writes
them, and ViSpec.
"""
_EPILOG = """\
A layout that is not known for certain is refused, with what was found.
--target is worth giving: EAGLE-3 heads often do not say which layers they
read, an embedding table that is the target's is then left out, and the
server can refuse another target. docs/heads.md lists public heads.

examples:
  hf download yuhuili/EAGLE3-LLaMA3.1-Instruct-8B --local-dir eagle3
  specvlm convert eagle3 --target models/Llama-3.1-8B-Instruct --out head
  specvlm convert eagle1 --target models/target --vocabulary 16000 --out head
"""


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1 << 24:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 to {1 << 24}")
    return int(text)


def _layer(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not the number of a layer, from 0 up")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line of `specvlm convert`."""
    result = argparse.ArgumentParser(
        prog="specvlm convert",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("source", metavar="SOURCE", help="folder with the head's config.json and weights")
    result.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write to")
    result.add_argument("--target", metavar="DIR", help="folder of the target that the head was made for")
    result.add_argument(
        "--layers",
        metavar="N",
        type=_layer,
        nargs="+",
        help="an EAGLE-3 head reads the states that enter these layers (from 0), whatever its config.json says",
    )
    result.add_argument(
        "--vocabulary",
        metavar="N",
        type=_count,
        help="draft only the N tokens with the lowest numbers, and ends of answers; a smaller output layer is quicker",
    )
    result.add_argument("--text-only", action="store_true", help="leave out what the head computes from pictures")
    result.add_argument(
        "--ignore", metavar="KEY", nargs="+", default=[], help="unknown keys of config.json that do not matter"
    )
    result.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    return result


def check_out(out: Path) -> None:
    """Raise UserError if `out` is something that must not be replaced."""
    from vllm_specvlm.draft import head_config

    if out.is_dir() and any(out.iterdir()) and not head_config.is_head(out):
        raise UserError(f"--out {out} is a folder with other things in it: name a new one.")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder.")


def run(options: argparse.Namespace) -> Converted:
    """Convert and write. Raises UserError for anything that is wrong with source, target or folder."""
    from safetensors import SafetensorError

    from vllm_specvlm.draft import head_checkpoint
    from vllm_specvlm.train.convert import conversion
    from vllm_specvlm.train.convert import target as targets
    from vllm_specvlm.train.convert.parts import Wishes

    check_out(options.out)
    try:
        wishes = Wishes(
            target=None if options.target is None else targets.of_folder(resolve(options.target)),
            layers=None if options.layers is None else tuple(options.layers),
            vocabulary=options.vocabulary,
            ignored=frozenset(options.ignore),
            text_only=options.text_only,
        )
        converted = conversion.convert(options.source, wishes)
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        head_checkpoint.save(options.out, converted.head, converted.target, converted.provenance)
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be written ({error.strerror}): name another folder.") from error
    except (RuntimeError, SafetensorError) as error:  # a full disk, as safetensors tells of it
        said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"--out {options.out} cannot be written ({said}): make room or name another folder.") from error
    return converted


def summary(converted: Converted, out: Path) -> dict[str, Any]:
    """What was written, as JSON values."""
    config = converted.head.config
    tensors = converted.head.state_dict().values()
    return {
        "out": str(out),
        "layout": converted.layout,
        "target": converted.target.name,
        "parameters": sum(tensor.numel() for tensor in converted.head.parameters()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "feature_layers": list(config.feature_layers),
        "vocabulary": config.vocabulary,
        "own_embedding": config.own_embedding,
        "notes": list(converted.notes),
    }


def main(argv: Sequence[str]) -> int:
    """Convert a head and say what became of it."""
    options = parser().parse_args(argv)
    converted = run(options)
    found = summary(converted, options.out)
    if options.json:
        print(json.dumps(found))
        return 0
    for note in converted.notes:
        say(note)
    config = converted.head.config
    reads = f"the states entering layers {', '.join(map(str, config.feature_layers))}" if config.feature_layers else ""
    print(f"{options.out}: from {found['layout']}, for {found['target']}")
    print(f"  size     {found['parameters'] / 1e6:.1f} M parameters, {found['bytes'] / 2**20:.0f} MiB")
    print(f"  reads    {reads or 'what leaves the target through its final norm'}")
    print(f"  drafts   {config.vocabulary or 'all'} of {config.target_vocabulary} tokens")
    return 0
