"""`specvlm trace`: one answer, step by step, as a page to look at."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_specvlm.cli.calibrate import check_writable
from vllm_specvlm.cli.console import UserError, say
from vllm_specvlm.cli.demo import MAX_NODES, REFERENCE_DRAFT, REFERENCE_TARGET, check_picture
from vllm_specvlm.cli.model_names import resolve
from vllm_specvlm.cli.precision import DTYPE_HELP, default_dtype

if TYPE_CHECKING:
    from vllm_specvlm.timeline.timeline import Timeline

KV_BYTES = 1 << 30
GROWTHS = ("planned", "tree", "chain")


def _count(low: int, high: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {low} to {high}")
        return int(text)

    return number


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 2")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line of `specvlm trace`."""
    result = argparse.ArgumentParser(
        prog="specvlm trace",
        description="Answer one question about a picture and write down every step: a page to open in a browser, with"
        " the picture, the growing answer, each step's tree, and where the time went. It needs no network.",
    )
    result.add_argument("--target", metavar="NAME", default=REFERENCE_TARGET, help="folder or name of the target")
    result.add_argument(
        "--draft", metavar="DRAFT", default=REFERENCE_DRAFT, help="folder or name of the draft VLM or head, or lookup"
    )
    result.add_argument("--image", metavar="FILE", help="the picture (default: one that comes with the plugin)")
    result.add_argument("--prompt", metavar="TEXT", help="the question (default: one that fits that picture)")
    result.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("specvlm-trace.html"), help="default: specvlm-trace.html"
    )
    result.add_argument(
        "--trees",
        choices=GROWTHS,
        default="planned",
        help="who decides on their size: the planner (default), or always all of a dynamic tree or of a chain",
    )
    result.add_argument("--nodes", metavar="N", type=_count(1, MAX_NODES), default=16, help="most nodes (default: 16)")
    result.add_argument("--depth", metavar="N", type=_count(1, MAX_NODES), help="most levels (default: the engine's)")
    result.add_argument("--temperature", metavar="T", type=_temperature, default=0.0, help="default: 0, greedy")
    result.add_argument("--seed", metavar="N", type=_count(0, 2**31 - 1), default=0, help="of the draws (default: 0)")
    result.add_argument("--max-tokens", metavar="N", type=_count(2, 2048), default=96, help="longest answer")
    result.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default=default_dtype(), help=DTYPE_HELP
    )
    result.add_argument("--json", action="store_true", help="print the record as one JSON object on stdout as well")
    result.add_argument(
        "--replay", metavar="FILE", type=Path, help="make the page from such a JSON object, without models"
    )
    result.add_argument("--verbose", action="store_true", help="show vLLM's own messages")
    return result


def speculative(options: argparse.Namespace, draft: str | None) -> dict[str, Any]:
    """vLLM's speculative_config; `draft` None is lookup."""
    config: dict[str, Any] = {"method": "specvlm", "num_speculative_tokens": options.nodes}
    if draft is not None:
        config["model"] = draft
    if options.depth is not None:
        config["depth"] = options.depth
    if options.trees == "tree":
        config["planner"] = False
    elif options.trees == "chain":
        config["tree"] = "chain"
    return config


def setting(config: dict[str, Any]) -> str:
    """The same in words."""
    from vllm_specvlm.engine.options import SpecVLMOptions

    options = SpecVLMOptions.parse(config)
    shape = options.shape()
    if options.tree == "chain":
        return f"chains of {shape.nodes}"
    size = f"{shape.nodes} nodes, {shape.depth} deep"
    return f"trees planned step by step, at most {size}" if options.plans else f"trees of {size}"


def _said(error: Exception) -> str:
    """The first line of an error's message."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__).rstrip(".")


def answer(options: argparse.Namespace) -> Timeline:
    """Start the engine in this process, ask once to warm it up, and record the second time."""
    from vllm_specvlm import zoo

    path = str(zoo.sample_picture()) if options.image is None else check_picture(options.image)
    question = options.prompt or zoo.sample_question()
    target, draft = resolve(options.target), None if options.draft == "lookup" else resolve(options.draft)
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for the summary
    if not options.verbose:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    config = speculative(options, draft)
    say("starting the engine")
    import vllm
    from PIL import Image

    from vllm_specvlm.cli import recording
    from vllm_specvlm.engine import plugin

    plugin.register()
    try:
        words = setting(config)
        llm = vllm.LLM(
            model=target,
            dtype=options.dtype,
            enforce_eager=True,
            enable_prefix_caching=False,  # else the second answer would find the first one's prompt
            max_model_len=-1,  # the model's own, or as much as the cache holds
            max_num_seqs=1,
            kv_cache_memory_bytes=KV_BYTES,
            limit_mm_per_prompt={"image": 1},
            seed=0,
            speculative_config=config,
            use_tqdm_on_load=options.verbose,
        )
    except Exception as error:
        raise UserError(
            f"The engine does not start with {options.target} and {options.draft} ({_said(error)}):"
            " --verbose shows more, and `specvlm doctor` may know why."
        ) from error
    with Image.open(path) as file:
        picture = file.convert("RGB")
    content = [{"type": "image_pil", "image_pil": picture}, {"type": "text", "text": question}]
    params = vllm.SamplingParams(
        temperature=options.temperature,
        seed=options.seed if options.temperature else None,
        max_tokens=options.max_tokens,
    )

    def ask() -> Any:
        (output,) = llm.chat([{"role": "user", "content": content}], params, use_tqdm=False)
        return output

    try:
        ask()  # The first request pays for what happens once, and teaches the planner what drafts are worth.
    except ValueError as error:
        raise UserError(
            f"{options.target} cannot be asked this ({_said(error)}): try another picture or a shorter prompt."
        ) from error
    dtype = str(llm.llm_engine.model_config.dtype).removeprefix("torch.")
    engine = f"vLLM {vllm.__version__}, {dtype}, eager, {_device()}"
    names = recording.Names(options.target, options.draft, words, engine)
    return recording.record(llm, ask, names, question, picture, params)


def _device() -> str:
    """What the engine of this process computed on."""
    import torch
    from vllm.platforms import current_platform

    if current_platform.is_cuda():
        return str(torch.cuda.get_device_name())
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)}"


def main(argv: Sequence[str]) -> int:
    """Record and write the page; print a summary."""
    from vllm_specvlm.timeline.page import page
    from vllm_specvlm.timeline.summary import summary
    from vllm_specvlm.timeline.timeline import Timeline

    options = parser().parse_args(argv)
    if options.prompt is not None and not options.prompt.strip():
        raise UserError("The question is empty: --prompt takes the text of a question.")
    if options.prompt is not None and options.prompt.encode("utf-8", "replace").decode() != options.prompt:
        raise UserError("The question is no text in UTF-8: --prompt takes the text of a question.")
    check_writable(options.out)
    if options.replay is not None:
        try:
            found = Timeline.load(options.replay)
        except ValueError as error:
            raise UserError(str(error)) from error
    else:
        found = answer(options)
    try:
        options.out.write_text(page(found), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be written ({error.strerror}): name another file.") from error
    print(json.dumps(found.as_dict()) if options.json else summary(found))
    say(f"written to {options.out}: open it in a browser")
    return 0
