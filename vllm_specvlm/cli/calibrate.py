"""`specvlm calibrate`: what steps cost with a pair of models on this machine; drafts compared; traffic simulated."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_specvlm.cli.console import UserError, bold, say
from vllm_specvlm.cli.model_names import resolve
from vllm_specvlm.cli.precision import DTYPE_HELP, default_dtype
from vllm_specvlm.cli.progress import Progress

if TYPE_CHECKING:
    from vllm_specvlm.cli.calibration import Grid
    from vllm_specvlm.schedule.profile import Profile

REFERENCE_TARGET = "specvlm/reference-target"
REFERENCE_DRAFT = "specvlm/reference-draft"
DEFAULT_FILE = "specvlm-profile.json"
POLICIES = ("plain", "chain-4", "tree-8", "tree-16", "planned")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 to 4096")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line of `specvlm calibrate`."""
    result = argparse.ArgumentParser(
        prog="specvlm calibrate",
        description="Measure what steps cost with these models on this machine and write it to a profile, which an"
        " engine can start from (option 'profile'). Takes minutes; leave the machine alone meanwhile.",
    )
    result.add_argument("--target", metavar="MODEL", default=REFERENCE_TARGET, help="folder or name of the target")
    result.add_argument(
        "--draft", metavar="MODEL", default=REFERENCE_DRAFT, help="folder or name of the draft, or lookup"
    )
    result.add_argument(
        "--compare",
        metavar="CHECKPOINT",
        nargs="+",
        help="in the place of one draft: checkpoints of `specvlm train`, such as exits behind one, two and three"
        " layers. Prints what each is expected to give with one request at a time; writes nothing",
    )
    result.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default=default_dtype(), help=DTYPE_HELP
    )
    result.add_argument(
        "--compiled", action="store_true", help="compile the models, as a server does unless told not to"
    )
    result.add_argument("--tensor-parallel", metavar="N", type=_count, default=1, help="ranks")
    result.add_argument("--batch", metavar="N", type=_count, default=16, help="most requests at a time (default: 16)")
    result.add_argument(
        "--contexts",
        metavar="N",
        type=_count,
        nargs="+",
        help="prompt tokens to calibrate at, such as your traffic's (default: 128 768)",
    )
    result.add_argument("--kv-gib", metavar="N", type=_count, default=1, help="KV cache, GiB (default: 1)")
    result.add_argument("--out", metavar="FILE", type=Path, default=Path(DEFAULT_FILE), help=f"default: {DEFAULT_FILE}")
    result.add_argument("--quick", action="store_true", help="fewer sizes and steps: a rough profile")
    result.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    result.add_argument("--verbose", action="store_true", help="show vLLM's own messages")
    simulation = result.add_argument_group("simulation", "replay recorded requests with a profile, without an engine")
    simulation.add_argument("--simulate", metavar="TRACE", type=Path, help="a trace; nothing is measured then")
    simulation.add_argument(
        "--profile", metavar="FILE", type=Path, default=Path(DEFAULT_FILE), help=f"default: {DEFAULT_FILE}"
    )
    simulation.add_argument("--concurrency", metavar="N", type=_count, nargs="+", default=[1, 4, 16, 64])
    simulation.add_argument(
        "--policies", metavar="NAME", nargs="+", default=list(POLICIES), help="plain, chain-N, tree-N, planned"
    )
    simulation.add_argument(
        "--nodes", metavar="N", type=_count, default=32, help="most nodes of planned trees (default: 32)"
    )
    return result


def check_writable(path: Path) -> None:
    """Raise UserError, before minutes are spent, if there can be no file at `path`."""
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} for --out {path}: make it or name another.")
    if path.is_dir():
        raise UserError(f"--out {path} is a folder: name a file.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--out {path} cannot be written ({error.strerror}): name another file.") from error


def _model(option: str, name: str) -> str:
    """The folder or name of a model. Raises UserError for a folder that is none."""
    found = resolve(name)
    looks_like_path = found.startswith(("/", ".", "~"))
    if looks_like_path and not (Path(found).expanduser() / "config.json").is_file():
        raise UserError(f"{option} {name} is not the folder of a model (it has no config.json): give its path.")
    return found


def grid(batch: int, quick: bool, contexts: Sequence[int] | None = None) -> Grid:
    """The sizes to go through, up to so many requests."""
    from vllm_specvlm.cli import calibration

    batches = [*(size for size in calibration.BATCHES if size < batch), batch]
    chosen = sorted(set(contexts or calibration.CONTEXTS))
    if quick:
        return calibration.Grid(chosen[:1], sorted({1, *batches[::-2]}), (0, 1, 4, 16), steps=3)
    return calibration.Grid(chosen, batches, calibration.NODES)


def measure(options: argparse.Namespace) -> Profile:
    """Start the engine in this process and take it through the grid."""
    from vllm_specvlm.cli import calibration

    target = _model("--target", options.target)
    draft = None if options.draft == "lookup" else _model("--draft", options.draft)
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for the table
    if not options.verbose:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    sizes = grid(options.batch, options.quick, options.contexts)
    say("starting the engine")
    from vllm import LLM

    from vllm_specvlm.engine import plugin

    plugin.register()
    arguments = calibration.settings(target, draft, sizes) | {
        "dtype": options.dtype,
        "enforce_eager": not options.compiled,
        "tensor_parallel_size": options.tensor_parallel,
        "kv_cache_memory_bytes": options.kv_gib << 30,
    }
    try:
        llm = LLM(**arguments, use_tqdm_on_load=options.verbose)
    except Exception as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"The engine does not start with {options.target} and {options.draft} ({said.rstrip('.')}):"
            " --verbose shows more, and `specvlm doctor` may know why."
        ) from error
    progress = Progress("calibrating")
    try:
        profile, left_out = calibration.calibrate(llm, sizes, progress.show)
    finally:
        progress.end()
    for what in left_out:
        say(f"left out: {what}")
    return profile


def table(profile: Profile) -> str:
    """The curves for people to read, up to the largest size that was observed."""
    curves = {name: getattr(profile.costs, name).as_dict() for name in ("plain", "tree", "draft", "feed")}
    rows = curves["plain"]["rows"]
    last = max((i for curve in curves.values() for i, n in enumerate(curve["observed"]) if n), default=0)
    one = profile.costs.plain.at(1)

    def cell(name: str, i: int) -> str:
        observed = curves[name]["observed"][i]
        return f"{1e3 * curves[name]['seconds'][i]:>9.2f} {f'({observed})' if observed else '':>6}"

    def added(name: str) -> str:
        reading = getattr(profile.costs, name).reading
        shared = f" and {1e6 * reading.per_request:.2f} ms a request" if reading.per_request else ""
        return f"{1e6 * reading.per_row:.2f} ms a row{shared}"

    lines = [
        bold(
            f"{'rows':>5}  {'plain ms':>16}  {'trees ms':>16}  {'draft ms':>16}  {'feed ms':>16}"
            f"  {'trees / one plain':>18}"
        ),
        *(
            f"{rows[i]:>5}  {cell('plain', i)}  {cell('tree', i)}  {cell('draft', i)}  {cell('feed', i)}"
            f"  {curves['tree']['seconds'][i] / one:>17.2f}x"
            for i in range(last + 1)
            if any(curve["observed"][i] for curve in curves.values())
        ),
        "",
        "Without context; in brackets: passes observed, other values are estimated from their neighbours. A thousand"
        f" tokens of context add {added('plain')} to a plain step and {added('tree')} to one with trees.",
        f"Drafting costs {1e3 * profile.overhead:.2f} ms a step besides its passes.",
    ]
    return "\n".join(lines)


def predictions(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Tokens per second by policy and concurrency. Raises UserError for a file or a policy that is none."""
    from vllm_specvlm.schedule import trace
    from vllm_specvlm.schedule.profile import Profile
    from vllm_specvlm.schedule.simulator import simulate
    from vllm_specvlm.tree.tree_shape import TreeShape

    found = []
    try:
        profile, requests = Profile.load(options.profile), trace.read(options.simulate)
        shape = TreeShape(nodes=options.nodes, depth=min(12, options.nodes), width=4, top_k=4)
        for concurrency in options.concurrency:
            # Fewer requests than several rounds of everybody would mostly show the rounds' ends.
            count = max(len(requests), 4 * concurrency)
            asked = list(itertools.islice(itertools.cycle(requests), count))
            for policy in options.policies:
                outcome = simulate(asked, profile.costs, profile.overhead, policy, concurrency, shape, warm=True)
                found.append(
                    {
                        "concurrency": concurrency,
                        "policy": policy,
                        "tokens_per_s": round(outcome.tokens_per_s, 2),
                        "acceptance_length": round(outcome.acceptance_length, 3),
                        "nodes_per_tree": round(outcome.nodes / outcome.trees, 2) if outcome.trees else 0.0,
                        "requests": count,
                        "plans": dict(outcome.plans),
                    }
                )
    except ValueError as error:
        raise UserError(str(error)) from error
    return found


def prediction_table(found: Sequence[dict[str, Any]]) -> str:
    """Rows by concurrency, columns by policy; the best of each row marked."""
    policies = list(dict.fromkeys(row["policy"] for row in found))
    lines = [bold(f"{'at once':>7}" + "".join(f"{policy:>12} " for policy in policies) + "  tokens/s, predicted")]
    for concurrency in dict.fromkeys(row["concurrency"] for row in found):
        rates = {row["policy"]: row["tokens_per_s"] for row in found if row["concurrency"] == concurrency}
        best = max(rates.values())
        cells = [f"{rates[policy]:>12.1f}{'*' if rates[policy] == best else ' '}" for policy in policies]
        lines.append(f"{concurrency:>7}" + "".join(cells))
    return "\n".join(lines)


def _compared(options: argparse.Namespace) -> int:
    from vllm_specvlm.cli import comparison

    contexts = options.contexts or [256]
    with tempfile.TemporaryDirectory() as scratch:
        profile = Path(scratch) / "profile.json"
        arguments = ["--target", options.target, "--dtype", options.dtype, "--kv-gib", str(options.kv_gib)]
        arguments += ["--batch", "1", "--contexts", *map(str, contexts), "--json"]
        arguments += ["--out", str(profile), *(["--compiled"] if options.compiled else [])]
        rows = comparison.compare(options.compare, comparison.measured_apart(arguments), statistics.mean(contexts))
    print(json.dumps({"rows": rows}) if options.json else comparison.table(rows))
    return 0


def main(argv: Sequence[str]) -> int:
    """Measure and write the profile, or compare, or simulate; print a table."""
    options = parser().parse_args(argv)
    if options.simulate is not None:
        found = predictions(options)
        print(json.dumps({"predictions": found}) if options.json else prediction_table(found))
        return 0
    if options.compare is not None:
        return _compared(options)
    check_writable(options.out)
    try:
        profile = measure(options)
    except KeyboardInterrupt:
        say("specvlm calibrate: stopped; nothing was written.")
        return 130
    try:
        profile.save(options.out)
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be written ({error.strerror}): name another file.") from error
    print(json.dumps(profile.as_dict()) if options.json else table(profile))
    say(f'written to {options.out}; start an engine from it with the option "profile": "{options.out}"')
    return 0
