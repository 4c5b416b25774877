"""Teach the draft to speak like the target: ``python -m vllm_specvlm.zoo.train_draft words|distil --work DIR``.

``words`` starts from ``DIR/draft_sight.pt`` and learns the right answers' tokens (cross-entropy over the tokens in use
and random others). It needs no target, so it runs beside the target's training. ``distil`` then minimises the
Kullback-Leibler divergence to the target's own law over the whole vocabulary, computed on line, on right answers and on
answers that the target itself sampled.
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from vllm_specvlm.zoo import chat, language_model, sight
from vllm_specvlm.zoo.conversation import Batch, sample_batch
from vllm_specvlm.zoo.draft import DraftModel
from vllm_specvlm.zoo.drill import drill_batch
from vllm_specvlm.zoo.gguf_file import GgufFile
from vllm_specvlm.zoo.speak import answers
from vllm_specvlm.zoo.target import TargetModel
from vllm_specvlm.zoo.training import Curve, RunningMean, average_gradients, launch, load_state, rate, save_state

SEED = {"words": 301, "distil": 302}
NEGATIVES = 1500  # random tokens beside those in use, per step


def words_loss(model: DraftModel, batch: Batch, used: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Cross-entropy over ``used`` and random tokens, and the share of answer tokens predicted right."""
    spoken = batch.spoken[:, 1:]
    wanted = batch.ids[:, 1:][spoken]
    rows = torch.cat([used, wanted, torch.randint(language_model.VOCAB, (NEGATIVES,))]).unique()
    with torch.autocast("cpu", torch.bfloat16):
        states = model.states(batch.ids, batch.images)[:, :-1][spoken]
    logits = model.logits(states.float(), rows)
    index = torch.searchsorted(rows, wanted)
    return F.cross_entropy(logits, index), (logits.argmax(-1) == index).float().mean().item()


def naming_loss(model: DraftModel, rng: random.Random, size: int, word_ids: dict[str, int]) -> torch.Tensor:
    """Pull the visual tokens towards the draft's own embeddings of the words for what each place shows.

    The decoder soon learns to copy words from the question into the answer; visual tokens that look like words are then
    copied by the same heads.
    """
    images, classes = sight.batch(rng, size)
    with torch.no_grad():
        table = model.embed(torch.tensor(list(word_ids.values())))
    targets = sight.WordTargets(table, {word: row for row, word in enumerate(word_ids)})
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model.eye(images)
    return targets.loss(tokens.float(), classes)


def distil_loss(model: DraftModel, target: TargetModel, batch: Batch) -> tuple[torch.Tensor, float]:
    """Divergence of the draft's law from the target's over the answers' positions, and how often their best tokens
    agree.
    """
    spoken = batch.spoken[:, 1:]
    with torch.no_grad():
        teacher = target.logits(target.states(batch.ids, batch.images)[:, :-1][spoken]).log_softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        states = model.states(batch.ids, batch.images)[:, :-1][spoken]
    student = model.logits(states.float()).log_softmax(-1)
    agree = (student.argmax(-1) == teacher.argmax(-1)).float().mean().item()
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True), agree


def train(
    rank: int, ranks: int, *, stage: str, work: Path, home: Path, steps: int, size: int, learning_rate: float
) -> None:
    """Run or resume ``stage`` in process ``rank`` of ``ranks``."""
    torch.manual_seed(SEED[stage] + rank)
    gguf = GgufFile(language_model.find_gguf(home))
    tokenizer = language_model.load_tokenizer(gguf)
    weights = language_model.load_tensors(gguf)
    model = DraftModel(weights["model.embed_tokens.weight"])
    target: TargetModel | None = None
    if stage == "distil":
        target = TargetModel(weights).eval()
        target.load_trained(load_state(work / "target.pt")["mean"])
    parameters = [p for name, p in model.named_parameters() if name != "decoder.embed_tokens.weight"]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    path, first = work / f"draft_{stage}.pt", 0
    if path.exists():
        state = load_state(path)
        model.load_trained(state["parts"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    elif stage == "words":
        seen = load_state(work / "draft_sight.pt")["eye"]
        model.eye.tower.load_state_dict(
            {n.removeprefix("tower."): v for n, v in seen.items() if n.startswith("tower.")}
        )
    else:
        model.load_trained(load_state(work / "draft_words.pt")["mean"])
    mean = RunningMean(state.get("mean", state["parts"]) if first else model.trained(), window=100)
    if ranks > 1:  # the stages' random initial values must agree
        for parameter in parameters:
            torch.distributed.broadcast(parameter.data, 0)
    talk = chat.load(work / "chat.json", tokenizer)
    probe = sample_batch(tokenizer, random.Random(0), 400)
    used = torch.cat([probe.ids[probe.spoken], *(torch.tensor(c.ids) for c in talk)]).unique()
    word_ids = {word: tokenizer(" " + word).input_ids[0] for word in sight.WordTargets.words()}
    curve = Curve(work / f"draft_{stage}.csv")
    for step in range(first, steps):
        rng = random.Random(f"{SEED[stage]}/{step}/{rank}")
        few = [rng.choice(talk) for _ in range(max(1, size // 10))]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate(step, steps)
        if target is None:
            if step % 3:
                batch = drill_batch(tokenizer, rng, 2 * size)
            else:
                batch = sample_batch(tokenizer, rng, size, extra=few)
            loss, hits = words_loss(model, batch, used)
            loss = loss + 0.3 * naming_loss(model, rng, size, word_ids)
        else:
            # Every third step learns from what the target says itself, right or wrong.
            own = step % 3 == 2
            batch = answers(target, tokenizer, rng, size) if own else sample_batch(tokenizer, rng, size, extra=few)
            loss, hits = distil_loss(model, target, batch)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        mean.add(model.trained())
        if rank == 0 and step % 30 in (0, 1):
            curve.row(step=step + 1, loss=loss.item(), agreement=hits)
        if rank == 0 and ((step + 1) % 100 == 0 or step + 1 == steps):
            save_state(path, parts=model.trained(), mean=mean.tensors, optimizer=optimizer.state_dict(), step=step + 1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("words", "distil"))
    parser.add_argument("--work", type=Path, required=True, help="folder of training states and curves")
    parser.add_argument(
        "--home", type=Path, default=Path.home() / ".cache" / "vllm_specvlm", help="where downloads are kept"
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=24, help="pictures per process and step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    run = partial(
        train,
        stage=args.stage,
        work=args.work,
        home=args.home,
        steps=args.steps,
        size=args.batch,
        learning_rate=args.lr,
    )
    launch(run, args.processes)


if __name__ == "__main__":
    main()
