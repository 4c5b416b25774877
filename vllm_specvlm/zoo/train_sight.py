"""Train a tower on the renderer's labels: ``python -m vllm_specvlm.zoo.train_sight target|draft --work DIR``."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch

from vllm_specvlm.zoo import language_model, sight
from vllm_specvlm.zoo.gguf_file import GgufFile
from vllm_specvlm.zoo.sizes import DRAFT, TARGET
from vllm_specvlm.zoo.training import Curve, launch, load_state, rate, save_state
from vllm_specvlm.zoo.vision import Eye

SEED = {"target": 101, "draft": 102}


def train(which: str, work: Path, steps: int, size: int, learning_rate: float, home: Path) -> None:
    """Run or resume the stage; leaves ``work/{which}_sight.pt`` with the eye's weights."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED[which])
    model = TARGET if which == "target" else DRAFT
    eye = Eye(model.tower, model.hidden)
    labeller = sight.Labeller(model.tower.width)
    words = None
    if which == "target":
        gguf = GgufFile(language_model.find_gguf(home))
        tokenizer = language_model.load_tokenizer(gguf)
        ids = {word: tokenizer(" " + word).input_ids[0] for word in sight.WordTargets.words()}
        words = sight.WordTargets(torch.tensor(gguf.tensor("token_embd.weight")), ids)
    parameters = [*eye.parameters(), *labeller.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    path, first = work / f"{which}_sight.pt", 0
    if path.exists():
        state = load_state(path)
        eye.load_state_dict(state["eye"])
        labeller.load_state_dict(state["labeller"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    curve = Curve(work / f"{which}_sight.csv")
    for step in range(first, steps):
        images, classes = sight.batch(random.Random(f"{SEED[which]}/{step}"), size)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            features = eye.features(images)
            logits = [scores.float() for scores in labeller(features)]
            tokens = eye.projector(features) if words else None
        loss, hits = sight.label_loss(logits, classes)
        regression = words.loss(tokens.float(), classes) if words and tokens is not None else torch.zeros(())
        optimizer.zero_grad()
        (loss + 0.3 * regression).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            curve.row(
                step=step + 1,
                loss=loss.item(),
                regression=regression.item(),
                size=hits[0],
                colour=hits[1],
                shape=hits[2],
            )
        if (step + 1) % 250 == 0 or step + 1 == steps:
            held_out = sight.accuracy(eye, labeller, seed=1)
            print(f"held out: size {held_out[0]:.3f} colour {held_out[1]:.3f} shape {held_out[2]:.3f}", flush=True)
            save_state(
                path,
                eye=eye.state_dict(),
                labeller=labeller.state_dict(),
                optimizer=optimizer.state_dict(),
                step=step + 1,
                held_out=held_out,
            )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=("target", "draft"))
    parser.add_argument("--work", type=Path, required=True, help="folder of training states and curves")
    parser.add_argument(
        "--home", type=Path, default=Path.home() / ".cache" / "vllm_specvlm", help="where downloads are kept"
    )
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    arguments = parser.parse_args()
    launch(
        lambda _rank, _ranks: train(
            arguments.which, arguments.work, arguments.steps, arguments.batch, arguments.lr, arguments.home
        ),
        ranks=1,
    )


if __name__ == "__main__":
    main()
