"""`specvlm train`: a feature head, an early exit or a draft VLM for a target, from a recipe."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_specvlm.cli.console import UserError, bold, say
from vllm_specvlm.cli.model_names import resolve
from vllm_specvlm.cli.progress import Progress

if TYPE_CHECKING:
    from vllm_specvlm.draft.early_exit import EarlyExit
    from vllm_specvlm.draft.feature_head import FeatureHead
    from vllm_specvlm.train.recipe import Recipe
    from vllm_specvlm.train.small_vlm import SmallVLM
    from vllm_specvlm.train.trainer import Outcome, Trainer


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 up")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line of `specvlm train`."""
    result = argparse.ArgumentParser(
        prog="specvlm train",
        description="Train a feature head, an early exit or a draft VLM on the target's own features and laws, computed"
        " on the fly. A run that was stopped, however, goes on with --resume as if it had not been. Several processes:"
        " torchrun --nproc-per-node N -m vllm_specvlm.cli train RECIPE.",
    )
    result.add_argument("recipe", metavar="RECIPE", type=Path, help="a TOML file, such as those in benchmarks/recipes")
    result.add_argument("--out", metavar="DIR", type=Path, help="folder of the run (default: the recipe's)")
    result.add_argument(
        "--from-log",
        metavar="LOG",
        type=Path,
        help="a folder that a server recorded to: half of the conversations are from it, half from the recipe's data",
    )
    result.add_argument("--resume", action="store_true", help="go on from the newest sound checkpoint in DIR, if any")
    result.add_argument("--steps", metavar="N", type=_count, help="steps in all (default: the recipe's)")
    result.add_argument("--threads", metavar="N", type=_count, help="of a process on the CPU (default: all cores)")
    result.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    return result


def read(options: argparse.Namespace) -> tuple[Recipe, Path]:
    """The recipe with the command line's changes, and the folder of the run. Raises UserError."""
    from vllm_specvlm.train import recipe as recipes
    from vllm_specvlm.train.checkpoints import steps_in
    from vllm_specvlm.train.errors import RecipeError

    try:
        recipe = recipes.load(options.recipe)
    except RecipeError as error:
        raise UserError(str(error)) from error
    if options.steps is not None:
        recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, steps=options.steps))
    if options.from_log is not None:
        log = recipes.DataRecipe(str(options.from_log.absolute()), weight=sum(each.weight for each in recipe.data))
        recipe = dataclasses.replace(recipe, data=(*recipe.data, log))
    if options.out is None and not recipe.out:
        raise UserError(f"Neither --out nor 'out' of the recipe '{options.recipe}' says where the run goes: name it.")
    out = options.out if options.out is not None else options.recipe.parent / Path(recipe.out).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder '{out}' cannot be made ({error.strerror}): name another --out.") from error
    steps = steps_in(out)
    if steps and not options.resume:
        raise UserError(f"'{out}' holds a run up to step {steps[-1]}: --resume goes on with it, or name another --out.")
    return recipe, out


def trainer(
    options: argparse.Namespace, recipe: Recipe, out: Path, progress: Progress
) -> Trainer[FeatureHead] | Trainer[EarlyExit] | Trainer[SmallVLM]:
    """Target and data loaded, everything ready. Raises RecipeError."""
    import torch

    from vllm_specvlm.train import draft_checkpoint
    from vllm_specvlm.train.draft_student import DraftStudent
    from vllm_specvlm.train.exit_student import ExitStudent
    from vllm_specvlm.train.head_student import HeadStudent
    from vllm_specvlm.train.ranks import Ranks
    from vllm_specvlm.train.sources import Sources
    from vllm_specvlm.train.target import Target
    from vllm_specvlm.train.trainer import Trainer

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    ranks = Ranks()
    leads = ranks.rank == 0
    dtype = torch.bfloat16 if recipe.training.bf16 else torch.float32
    sources = Sources(recipe.data, options.recipe.parent)
    hears: dict[str, Any] = {
        "tell": progress.show if leads else lambda share, doing: None,
        "say": say if leads else lambda text: None,
    }
    if recipe.exit is not None:
        target = Target(resolve(recipe.target), dtype, ranks.device, (recipe.exit.layers,), ahead=1)
        return Trainer(ExitStudent(), recipe, target, sources, out, ranks, folder=options.recipe.parent, **hears)
    if recipe.draft is not None:
        target = Target(resolve(recipe.target), dtype, ranks.device, tower=bool(recipe.draft.start))
        draft = DraftStudent(draft_checkpoint.folder_of(target.folder))
        return Trainer(draft, recipe, target, sources, out, ranks, folder=options.recipe.parent, **hears)
    settles = recipe.losses.intermediate > 0
    target = Target(resolve(recipe.target), dtype, ranks.device, recipe.head.feature_layers, settles=settles)
    return Trainer(HeadStudent(), recipe, target, sources, out, ranks, folder=options.recipe.parent, **hears)


def summary(outcome: Outcome) -> str:
    """For people to read."""
    rows = [row for row in outcome.rows if row["chain"]]
    lines = [bold(f"{'step':>8}  {'loss':>9}  {'chain':>7}  {'tree':>7}   tokens per check, held out")]
    shown = rows if len(rows) <= 12 else [*rows[:: len(rows) // 8], rows[-1]]
    lines += [
        f"{row['step']:>8}  {float(row['loss']):>9.4f}  {float(row['chain']):>7.3f}  {float(row['tree']):>7.3f}"
        for row in shown
    ]
    return "\n".join(lines)


def _as_json(outcome: Outcome) -> dict[str, Any]:
    last = next((row for row in reversed(outcome.rows) if row["chain"]), None)
    return {"checkpoint": str(outcome.folder), "step": outcome.step, "held_out": last}


def main(argv: Sequence[str]) -> int:
    """Train; print how the held-out acceptance length went."""
    options = parser().parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    recipe, out = read(options)
    from vllm_specvlm.train.errors import RecipeError, TrainingError

    progress = Progress("training")
    run = None
    try:
        run = trainer(options, recipe, out, progress)
        outcome = run.run(resume=options.resume)
    except RecipeError as error:
        progress.end()
        raise UserError(str(error)) from error
    except TrainingError as error:
        progress.end()
        say(f"specvlm train: {error}")
        return 1
    except KeyboardInterrupt:
        progress.end()
        say(f"specvlm train: stopped; {run.left() if run else 'nothing was written'}: --resume goes on from there.")
        return 130
    finally:
        if run is not None:
            run.ranks.leave()
    progress.end()
    if run.ranks.rank == 0:
        print(json.dumps(_as_json(outcome)) if options.json else summary(outcome))
        say(f"the drafter is in {outcome.folder}")
    return 0
