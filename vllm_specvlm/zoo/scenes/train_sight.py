"""First stage: teach the eye what patches show. ``python -m vllm_specvlm.zoo.scenes.train_sight --work DIR``.

DIR is what :mod:`vllm_specvlm.zoo.scenes.sources` prepared. State (``sight.pt``) and curve (``sight.csv``) are left in
it; a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch

from vllm_specvlm.zoo import language_model
from vllm_specvlm.zoo.gguf_file import GgufFile
from vllm_specvlm.zoo.pair import default_home
from vllm_specvlm.zoo.scenes import sight, tasks, tower
from vllm_specvlm.zoo.scenes.canvas import Split
from vllm_specvlm.zoo.scenes.onnx_file import OnnxFile
from vllm_specvlm.zoo.scenes.settings import COARSE, FINE, Setting
from vllm_specvlm.zoo.scenes.sources import Sources
from vllm_specvlm.zoo.scenes.target import Eye, stack
from vllm_specvlm.zoo.scenes.turn import TASKS
from vllm_specvlm.zoo.training import Curve, load_state, rate, save_state

SEED = 301
FINE_EVERY = 8  # one step in so many sees a quarter as many pictures, four times as finely


def draw(
    sources: Sources, rng: random.Random, size: int, setting: Setting, split: Split = "train", task: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels ``[size, 3, side, side]`` and classes ``[size, tokens, 2]`` of random pictures."""
    samples = [tasks.sample(sources, rng, split, task) for _ in range(size)]
    known = torch.stack([sight.classes(sample.marks, setting) for sample in samples])
    return stack([sample.picture for sample in samples], setting), known


@torch.no_grad()
def held_out(eye: Eye, teacher: sight.Teacher, sources: Sources, size: int = 16) -> dict[str, float]:
    """Share of telling patches whose main word is right, per task, on validation pictures."""
    shares = {}
    for task in TASKS[:-1]:
        images, known = draw(sources, random.Random(f"validation/{task}"), size, COARSE, "validation", task)
        features = eye.features(images)
        shares[task] = round(teacher.loss(features, eye.project(features), known)[1][0], 3)
    return shares


def train(work: Path, home: Path, steps: int, size: int, learning_rate: float) -> None:
    """Run or resume the stage."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    sources = Sources(work)
    gguf = GgufFile(language_model.find_gguf(home))
    eye = Eye(tower.load_tensors(OnnxFile(tower.find_onnx(home))))
    tokenizer = language_model.load_tokenizer(gguf)
    teacher = sight.Teacher(torch.from_numpy(gguf.tensor("token_embd.weight")), tokenizer)
    trained = [p for p in eye.parameters() if p.requires_grad] + list(teacher.parameters())
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    path, first = work / "sight.pt", 0
    if path.exists():
        state = load_state(path)
        eye.load_trained(state["parts"])
        teacher.load_state_dict(state["teacher"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    else:
        eye.whiten(draw(sources, random.Random("whiten"), 24, COARSE)[0])
    curve = Curve(work / "sight.csv")
    for step in range(first, steps):
        fine = step % FINE_EVERY == FINE_EVERY - 1
        images, known = draw(
            sources, random.Random(f"{SEED}/{step}"), size // 4 if fine else size, FINE if fine else COARSE
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate(step, steps)
        features = eye.features(images)
        loss, figures = teacher.loss(features, eye.project(features), known)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step % 10 in (0, 7):
            curve.row(
                step=step + 1,
                grid=FINE.grid if fine else COARSE.grid,
                loss=loss.item(),
                main=figures[0],
                side=figures[1],
                regression=figures[2],
            )
        if (step + 1) % 100 == 0 or step + 1 == steps:
            print("held out:", held_out(eye, teacher, sources), flush=True)
        if (step + 1) % 25 == 0 or step + 1 == steps:
            save_state(
                path,
                parts=eye.trained(),
                teacher=teacher.state_dict(),
                optimizer=optimizer.state_dict(),
                step=step + 1,
            )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="prepared sources, training states and curves")
    parser.add_argument("--home", type=Path, default=default_home(), help="where downloads are kept")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    train(args.work, args.home, args.steps, args.batch, args.lr)


if __name__ == "__main__":
    main()
