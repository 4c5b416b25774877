"""`specvlm demo`: one question about a picture, answered by plain vLLM and by specvlm, side by side.

Each engine runs in a process of its own, one after the other, in the same mode; see `measurement`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_specvlm.cli.console import UserError, bold, say
from vllm_specvlm.cli.measurement import Measurement, Request
from vllm_specvlm.cli.model_names import resolve
from vllm_specvlm.cli.precision import DTYPE_HELP, default_dtype

REFERENCE_TARGET = "specvlm/reference-target"
REFERENCE_DRAFT = "specvlm/reference-draft"
SCENES_HEAD = "specvlm/scenes-head"
MAX_NODES = 127
WIDTH = 96  # characters of a line for people


def _count(low: int, high: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {low} to {high}")
        return int(text)

    return number


def parser() -> argparse.ArgumentParser:
    """The command line of `specvlm demo`."""
    result = argparse.ArgumentParser(
        prog="specvlm demo",
        description="Answer a question about a picture with plain vLLM and with specvlm: same answer, which is faster?",
    )
    result.add_argument("--image", metavar="FILE", help="the picture (default: one that comes with the plugin)")
    result.add_argument("--prompt", metavar="TEXT", help="the question (default: one that fits that picture)")
    result.add_argument("--dtype", choices=("float32", "bfloat16"), default=default_dtype(), help=DTYPE_HELP)
    result.add_argument("--target", metavar="NAME", default=REFERENCE_TARGET, help="the model that answers")
    result.add_argument(
        "--draft",
        metavar="NAME",
        help="its draft VLM, feature head or early exit, or lookup: draft from the text so far, without a model"
        " (default: the one that comes with the plugin for its own targets)",
    )
    result.add_argument("--nodes", metavar="N", type=_count(1, MAX_NODES), default=16, help="most nodes of a tree")
    result.add_argument("--max-tokens", metavar="N", type=_count(2, 1024), default=96, help="longest answer")
    result.add_argument("--repeat", metavar="N", type=_count(1, 1000), default=3, help="measured runs of each")
    result.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    result.add_argument("--verbose", action="store_true", help="show vLLM's own messages")
    return result


def check_picture(path: str) -> str:
    """The picture's absolute path. Raises UserError if it is no picture that can be read."""
    from PIL import Image, UnidentifiedImageError

    if not Path(path).is_file():
        raise UserError(f"There is no file {path}: --image takes the path of a picture.")
    try:
        with Image.open(path) as file:
            file.load()
    except UnidentifiedImageError:
        raise UserError(
            f"{path} is not a picture: --image takes a PNG, JPEG or other file that Pillow reads."
        ) from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a picture ({error}): try another file.") from error
    return str(Path(path).resolve())


def sample(target: str) -> tuple[str, str]:
    """A picture that comes with the plugin, and a question that fits it and was never trained on."""
    from vllm_specvlm import zoo

    if not target.startswith("specvlm/scenes-"):
        return str(zoo.sample_picture()), zoo.sample_question()
    from vllm_specvlm.zoo.scenes import test_questions

    longest = max(test_questions("describe"), key=lambda question: len(question.turns[0].answer))
    return str(longest.path), longest.turns[0].question


def drafting(name: str) -> dict[str, Any]:
    """The options that make a draft of this name; one that does not look is wanted, since it was named."""
    from vllm_specvlm.draft import head_config

    if name == "lookup":
        return {}
    folder = resolve(name)
    return {"model": folder, "text_only_draft": True} if head_config.is_blind(folder) else {"model": folder}


def run_measurement(request: Request, verbose: bool) -> Measurement:
    """Measure `request` in a fresh process.

    Raises:
        UserError: the draft does not fit the target.
        RuntimeError: the process failed, with its last words.
    """
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if not verbose:
        environment.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory(prefix="specvlm-demo-") as folder:
        asked, answered, words = (Path(folder) / name for name in ("request.json", "result.json", "stderr.txt"))
        asked.write_text(json.dumps(dataclasses.asdict(request)))
        with words.open("w") as quiet:
            done = subprocess.run(
                [sys.executable, "-m", "vllm_specvlm.cli.measurement", str(asked), str(answered)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr if verbose else quiet,
                stderr=None if verbose else quiet,
                check=False,
            )
        if done.returncode:
            raise RuntimeError(words.read_text(errors="replace")[-4000:] or f"exit status {done.returncode}")
        found = json.loads(answered.read_text())
        if "problem" in found:
            raise UserError(f"{found['problem'].rstrip('.')}: --draft takes a drafter of this target.")
        return Measurement(**found)


def result_of(request: Request, plain: Measurement, specvlm: Measurement) -> dict[str, Any]:
    """The JSON object of `--json`: the comparison, then what it was measured with."""

    def ratio(over: float, under: float) -> float:
        return round(over / under, 4) if under else 0.0

    return {
        "identical": plain.token_ids == specvlm.token_ids,
        "speedup": ratio(specvlm.tokens_per_s, plain.tokens_per_s),
        "acceptance_length": round(specvlm.acceptance_length, 4),
        "plain_tokens_per_s": round(plain.tokens_per_s, 3),
        "specvlm_tokens_per_s": round(specvlm.tokens_per_s, 3),
        "plain_text": plain.text,
        "specvlm_text": specvlm.text,
        "end_to_end_speedup": ratio(plain.total_s, specvlm.total_s),
        "plain_first_token_s": round(plain.first_token_s, 4),
        "specvlm_first_token_s": round(specvlm.first_token_s, 4),
        "plain_total_s": round(plain.total_s, 4),
        "specvlm_total_s": round(specvlm.total_s, 4),
        "tokens": len(specvlm.token_ids),
        "drafts": specvlm.drafts,
        "warning": unrest(plain, specvlm),
        "runs": len(plain.rates),
        "plain_runs_tokens_per_s": [round(rate, 3) for rate in plain.rates],
        "specvlm_runs_tokens_per_s": [round(rate, 3) for rate in specvlm.rates],
        "prompt": request.prompt,
        "dtype": request.dtype,
        "mode": "eager, one request at a time",
        "speculative_config": request.speculative,
    }


def verdict(result: dict[str, Any]) -> str:
    """Identical or not, and what it means, in one or two sentences."""
    if result["identical"]:
        return f"The {result['tokens']} tokens of both answers are identical."
    if result["dtype"] == "bfloat16":
        return (
            "The answers differ. In bfloat16 that happens where two tokens score almost alike and rounding decides; "
            "--dtype float32 compares without rounding in the way."
        )
    return (
        "The answers differ, which must not happen in float32: run `./run doctor` (or `specvlm doctor`) and report"
        " what it says."
    )


def unrest(*engines: Measurement) -> str | None:
    """A warning if the runs of one engine differ by more than a quarter."""
    for measured in engines:
        slowest, fastest = min(measured.rates), max(measured.rates)
        if fastest > 1.25 * slowest:
            return (
                f"The runs differ much ({slowest:.1f} to {fastest:.1f} tokens/s), so the ratio says little:"
                " is this machine busy?"
            )
    return None


def report(result: dict[str, Any]) -> str:
    """The result for people to read."""

    def answer(title: str, text: str) -> str:
        return f"{bold(title)}\n{textwrap.indent(textwrap.fill(text.strip(), WIDTH), '  ')}\n"

    def line(title: str, which: str) -> str:
        return (
            f"  {title:<10}  {result[which + '_tokens_per_s']:>9.1f} tokens/s"
            f"  {result[which + '_first_token_s']:>11.3f} s  {result[which + '_total_s']:>8.3f} s"
        )

    parts = [answer("Question", result["prompt"]), answer("plain vLLM", result["plain_text"])]
    if not result["identical"]:
        parts.append(answer("specvlm", result["specvlm_text"]))
    footing = (
        f"Acceptance length {result['acceptance_length']:.2f}: tokens per check of the target, the one it adds itself"
        f" counted. {result['dtype']}, {result['mode']}, median of {result['runs']}."
    )
    return "\n".join(
        [
            *parts,
            verdict(result),
            *([bold(textwrap.fill(result["warning"], WIDTH))] if result["warning"] else []),
            "",
            f"  {'':<10}  {'decoding':>18}  {'first token':>13}  {'in all':>10}",
            line("plain vLLM", "plain"),
            line("specvlm", "specvlm"),
            f"  {'ratio':<10}  {result['speedup']:>17.2f}x  {'':>13}  {result['end_to_end_speedup']:>9.2f}x",
            "",
            textwrap.fill(footing, WIDTH),
        ]
    )


def main(argv: Sequence[str]) -> int:
    """Run both engines and print the comparison; status 1 if an engine failed or float32 answers differ."""
    options = parser().parse_args(argv)
    if options.prompt is not None and not options.prompt.strip():
        raise UserError("The question is empty: --prompt takes the text of a question.")
    picture = None if options.image is None else check_picture(options.image)

    say("preparing the models (reference models are built once, then found again)")
    sample_picture, question = sample(options.target)
    name = options.draft or (SCENES_HEAD if options.target.startswith("specvlm/scenes-") else REFERENCE_DRAFT)
    draft = drafting(name)
    plain_request = Request(
        target=resolve(options.target),
        picture=picture or sample_picture,
        prompt=options.prompt or question,
        dtype=options.dtype,
        max_tokens=options.max_tokens,
        runs=options.repeat,
    )
    speculative = {"method": "specvlm", "num_speculative_tokens": options.nodes} | draft
    request = dataclasses.replace(plain_request, speculative=speculative)
    try:
        say("specvlm answers")  # first, as a draft may not fit
        specvlm = run_measurement(request, options.verbose)
        say("plain vLLM answers")
        plain = run_measurement(plain_request, options.verbose)
    except RuntimeError as error:
        say(f"{error}\nspecvlm demo: the engine above failed; `./run doctor` (or `specvlm doctor`) may know why.")
        return 1
    result = result_of(request, plain, specvlm)
    print(json.dumps(result) if options.json else report(result))
    return 0 if result["identical"] or result["dtype"] != "float32" else 1
