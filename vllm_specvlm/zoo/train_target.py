"""Teach the target to talk about what it sees: ``python -m vllm_specvlm.zoo.train_target --work DIR``.

Needs ``DIR/target_sight.pt`` and ``DIR/chat.json``. Loss: cross-entropy of the right answers' tokens, several questions
per picture, in turn with drills (:mod:`vllm_specvlm.zoo.drill`). Trained: eye and adapters. State and curve are left in
DIR; a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from vllm_specvlm.zoo import chat, language_model
from vllm_specvlm.zoo.conversation import sample_batch
from vllm_specvlm.zoo.drill import drill_batch
from vllm_specvlm.zoo.gguf_file import GgufFile
from vllm_specvlm.zoo.target import TargetModel
from vllm_specvlm.zoo.training import Curve, RunningMean, average_gradients, launch, load_state, rate, save_state

SEED = 201


def train(
    rank: int, ranks: int, *, work: Path, home: Path, steps: int, size: int, eye_rate: float, lora_rate: float
) -> None:
    """Run or resume the stage in process ``rank`` of ``ranks``."""
    torch.manual_seed(SEED)
    gguf = GgufFile(language_model.find_gguf(home))
    tokenizer = language_model.load_tokenizer(gguf)
    model = TargetModel(language_model.load_tensors(gguf))
    eye, adapters = list(model.eye.parameters()), list(model.adapters().values())
    optimizer = torch.optim.AdamW(
        [{"params": eye, "base": eye_rate}, {"params": adapters, "base": lora_rate}],
        weight_decay=0.0,
        betas=(0.9, 0.98),
    )
    path, first = work / "target.pt", 0
    if path.exists():
        state = load_state(path)
        model.load_trained(state["parts"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    else:
        model.eye.load_state_dict(load_state(work / "target_sight.pt")["eye"])
    mean = RunningMean(state.get("mean", state["parts"]) if first else model.trained(), window=40)
    talk = chat.load(work / "chat.json", tokenizer)
    curve = Curve(work / "target.csv")
    for step in range(first, steps):
        rng = random.Random(f"{SEED}/{step}/{rank}")
        if step % 2:
            batch = drill_batch(tokenizer, rng, 2 * size)
        else:
            batch = sample_batch(tokenizer, rng, size, extra=[rng.choice(talk)] if step % 4 == 0 else ())
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * rate(step, steps, warmup=20)
        states = model.states(batch.ids, batch.images)[:, :-1]
        spoken = batch.spoken[:, 1:]
        logits, wanted = model.logits(states[spoken]), batch.ids[:, 1:][spoken]
        loss = F.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        average_gradients([*eye, *adapters])
        torch.nn.utils.clip_grad_norm_([*eye, *adapters], 1.0)
        optimizer.step()
        if rank == 0:
            mean.add(model.trained())
        if rank == 0 and step % 10 in (8, 9):
            hits = (logits.argmax(-1) == wanted).float().mean().item()
            curve.row(
                step=step + 1, loss=loss.item(), accuracy=hits, tokens=int(batch.ids.numel()), answers=int(spoken.sum())
            )
        if rank == 0 and ((step + 1) % 50 == 0 or step + 1 == steps):
            save_state(path, parts=model.trained(), mean=mean.tensors, optimizer=optimizer.state_dict(), step=step + 1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training states and curves")
    parser.add_argument(
        "--home", type=Path, default=Path.home() / ".cache" / "vllm_specvlm", help="where downloads are kept"
    )
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=2, help="pictures per process and step")
    parser.add_argument("--eye-lr", type=float, default=3e-4)
    parser.add_argument("--lora-lr", type=float, default=1e-3)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    run = partial(
        train,
        work=args.work,
        home=args.home,
        steps=args.steps,
        size=args.batch,
        eye_rate=args.eye_lr,
        lora_rate=args.lora_lr,
    )
    launch(run, args.processes)


if __name__ == "__main__":
    main()
