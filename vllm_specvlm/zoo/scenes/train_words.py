"""Second stage: teach the target to answer. ``python -m vllm_specvlm.zoo.scenes.train_words --work DIR``.

Needs ``DIR/sight.pt``. Loss: cross-entropy of the right answers' tokens, plus a share of the first stage's loss, so
that the eye goes on learning from the same pictures. Trained: all adapters and the projector. State (``words.pt``) and
curve (``words.csv``) are left in DIR; a killed run goes on where it was, and a finished one goes on with more
``--steps``.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from vllm_specvlm.zoo import language_model
from vllm_specvlm.zoo.gguf_file import GgufFile
from vllm_specvlm.zoo.pair import default_home
from vllm_specvlm.zoo.scenes import sight, tasks, tower
from vllm_specvlm.zoo.scenes.onnx_file import OnnxFile
from vllm_specvlm.zoo.scenes.packing import Row, Rows, collate, pack
from vllm_specvlm.zoo.scenes.settings import COARSE, FINE, Setting
from vllm_specvlm.zoo.scenes.sources import Sources
from vllm_specvlm.zoo.scenes.target import SceneTarget, stack
from vllm_specvlm.zoo.scenes.turn import Sample
from vllm_specvlm.zoo.training import Curve, RunningMean, average_gradients, launch, load_state, rate, save_state

SEED = 302
POOL = 4  # steps drawn at once, so that rows of like length meet
FINE_EVERY = 8  # one step in so many sees half as many pictures in the finer setting
SIGHT_SHARE = 0.3
FIGURES_EVERY = 5


@dataclass(frozen=True)
class Batch:
    """One step's pictures, rows and patch classes."""

    setting: Setting
    images: torch.Tensor
    rows: Rows
    known: torch.Tensor
    task: str


def batches(
    sources: Sources, tokenizer: PreTrainedTokenizerFast, size: int, first: int, rank: int
) -> Iterator[tuple[int, Batch]]:
    """Steps from ``first`` on with their batches; a step's batch depends on the seed, the step and the rank alone."""
    step = first
    while True:
        pool = step // POOL
        rng = random.Random(f"{SEED}/{pool}/{rank}")
        samples = [tasks.sample(sources, rng, "train") for _ in range(POOL * size)]
        ordered: list[tuple[Sample, Row]] = sorted(
            ((sample, pack(tokenizer, sample, COARSE)) for sample in samples), key=lambda pair: len(pair[1].ids)
        )
        groups = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        rng.shuffle(groups)
        while step // POOL == pool:
            group = groups[step % POOL]
            setting, rows = COARSE, [row for _, row in group]
            if step % FINE_EVERY == FINE_EVERY - 1:
                setting, group = FINE, group[: max(1, size // 2)]
                rows = [pack(tokenizer, sample, setting) for sample, _ in group]
            yield (
                step,
                Batch(
                    setting,
                    stack([sample.picture for sample, _ in group], setting),
                    collate(rows),
                    torch.stack([sight.classes(sample.marks, setting) for sample, _ in group]),
                    "+".join(sorted({sample.task for sample, _ in group})),
                ),
            )
            step += 1


def train(
    rank: int, ranks: int, *, work: Path, home: Path, steps: int, size: int, eye_rate: float, language_rate: float
) -> None:
    """Run or resume the stage in process ``rank`` of ``ranks``."""
    torch.manual_seed(SEED)
    sources = Sources(work)
    gguf = GgufFile(language_model.find_gguf(home))
    tokenizer = language_model.load_tokenizer(gguf)
    model = SceneTarget(language_model.load_tensors(gguf), tower.load_tensors(OnnxFile(tower.find_onnx(home))))
    teacher = sight.Teacher(model.lm.get_input_embeddings().weight, tokenizer)
    eye = [p for p in model.eye.parameters() if p.requires_grad] + list(teacher.parameters())
    language = [p for p in model.lm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": eye, "base": eye_rate}, {"params": language, "base": language_rate}],
        weight_decay=0.0,
        betas=(0.9, 0.98),
    )
    path, first = work / "words.pt", 0
    if path.exists():
        state = load_state(path)
        model.load_trained(state["parts"])
        teacher.load_state_dict(state["teacher"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        mean = RunningMean(state["mean"], window=40)
    else:
        state = load_state(work / "sight.pt")
        model.load_trained(state["parts"])
        teacher.load_state_dict(state["teacher"])
        mean = RunningMean(model.trained(), window=40)
    curve = Curve(work / "words.csv")
    for step, batch in batches(sources, tokenizer, size, first, rank):
        if step >= steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * rate(step, steps, warmup=20)
        features = model.eye.features(batch.images)
        tokens = model.eye.project(features)
        seen, figures = teacher.loss(features, tokens, batch.known)
        embedded = model.embed(batch.rows.ids, tokens)
        states = model.states(embedded, batch.rows.mask, batch.rows.positions)[:, :-1]
        weight = batch.rows.weight[:, 1:]
        spoken = weight > 0
        logits, wanted = model.logits(states[spoken]), batch.rows.ids[:, 1:][spoken]
        losses = F.cross_entropy(logits, wanted, reduction="none")
        loss = (losses * weight[spoken]).sum() / weight.sum()
        optimizer.zero_grad()
        (loss + SIGHT_SHARE * seen).backward()
        average_gradients([*eye, *language])
        torch.nn.utils.clip_grad_norm_(eye, 1.0)
        torch.nn.utils.clip_grad_norm_(language, 1.0)
        optimizer.step()
        if rank:
            continue
        mean.add(model.trained())
        if step < 3 or step % FIGURES_EVERY in (0, 2) or batch.setting is FINE:
            hits = (logits.argmax(-1) == wanted).float()
            fact = weight[spoken] > 1
            curve.row(
                step=step + 1,
                grid=batch.setting.grid,
                loss=losses.detach().mean().item(),
                right=hits.mean().item(),
                facts=hits[fact].mean().item(),
                main=figures[0],
                side=figures[1],
                regression=figures[2],
                tokens=batch.rows.ids.numel(),
                answers=int(spoken.sum()),
                task=batch.task,
            )
        if (step + 1) % 5 == 0 or step + 1 == steps:
            save_state(
                path,
                parts=model.trained(),
                mean=mean.tensors,
                teacher=teacher.state_dict(),
                optimizer=optimizer.state_dict(),
                step=step + 1,
            )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="prepared sources, training states and curves")
    parser.add_argument("--home", type=Path, default=default_home(), help="where downloads are kept")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=4, help="pictures per process and step")
    parser.add_argument("--eye-lr", type=float, default=5e-4)
    parser.add_argument("--language-lr", type=float, default=1e-3)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()

    run = partial(
        train,
        work=args.work,
        home=args.home,
        steps=args.steps,
        size=args.batch,
        eye_rate=args.eye_lr,
        language_rate=args.language_lr,
    )
    launch(run, args.processes)


if __name__ == "__main__":
    main()
