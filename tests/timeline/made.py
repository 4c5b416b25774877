"""Timelines of requests that never were."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image, ImageDraw

from vllm_specvlm.cli.recording import shown
from vllm_specvlm.timeline.sight import Sight
from vllm_specvlm.timeline.step import PROMPT, Step
from vllm_specvlm.timeline.timeline import Picture, Timeline
from vllm_specvlm.tree.token_tree import TokenTree

_TEXT = "the picture shows a small red circle above two large blue squares, and on its left there is one green"
WORDS = tuple(_TEXT.split())


def step(rng: random.Random, nodes: int, depth: int, mode: str = "trees") -> Step:
    """A step with a tree of so many nodes (a chain where depth is as many) and a random accepted path."""
    parents: list[int] = []
    depths: list[int] = []
    for node in range(nodes):
        able = [parent for parent in range(-1, node) if parent < 0 or depths[parent] < depth]
        # The first nodes run straight to the bottom, so that the depth is reached.
        parent = node - 1 if node < depth else rng.choice(able)
        parents.append(parent)
        depths.append(1 if parent < 0 else depths[parent] + 1)
    tokens = tuple(rng.randrange(1000) for _ in range(nodes))
    path: list[int] = []
    while True:
        below = [node for node, parent in enumerate(parents) if parent == (path[-1] if path else -1)]
        if not below or rng.random() < 0.15:
            break
        path.append(below[0])
    draft, verify = (rng.uniform(0.004, 0.02) if nodes else 0.0), rng.uniform(0.01, 0.03)
    return Step(
        mode=mode,
        tokens=(*(tokens[node] for node in path), 1000 + rng.randrange(1000)),
        tree=TokenTree(tokens, tuple(parents)),
        log_probs=tuple(-rng.expovariate(1.5) for _ in range(nodes)),
        path=tuple(path),
        levels=depth if nodes else 0,
        draft=draft,
        draft_model=draft * 0.8,
        verify=verify,
        other=rng.uniform(0.0005, 0.002),
    )


def timeline(
    steps: int,
    *,
    nodes: int = 16,
    depth: int = 8,
    words: Sequence[str] = WORDS,
    question: str = "Please describe this picture in detail.",
    draw: int = 0,
    **changes: Any,
) -> Timeline:
    """A timeline with so many steps after the prompt's, of planned trees; `words` are the texts of all tokens."""
    rng = random.Random(draw)
    taken = [Step(mode=PROMPT, tokens=(7,), verify=0.15)]
    for number in range(steps):
        mode = "plain" if number % 17 == 16 else "probe" if number % 23 == 2 else "trees"
        taken.append(step(rng, 0 if mode == "plain" else rng.randint(depth, nodes), depth, mode))
    return of_steps(taken, words=words, question=question, rng=rng, size=f"{nodes} nodes, {depth} deep", **changes)


def of_steps(
    taken: Sequence[Step],
    *,
    words: Sequence[str] = WORDS,
    question: str = "Please describe this picture in detail.",
    rng: random.Random | None = None,
    size: str = "16 nodes",
    **changes: Any,
) -> Timeline:
    """The timeline of these steps."""
    rng = rng or random.Random(0)
    answer = tuple(token for each in taken for token in each.tokens)
    text = [f" {word}" for word in words]
    made = Timeline(
        target="specvlm/reference-target",
        draft="specvlm/reference-draft",
        setting=f"trees planned step by step, at most {size}",
        engine="no engine at all",
        temperature=0.0,
        seed=None,
        question=question,
        picture=picture(),
        prompt_tokens=61,
        answer=answer,
        pieces=tuple(text[i % len(text)] for i in range(len(answer))),
        finish="stop",
        steps=tuple(taken),
        labels=tuple(tuple(rng.choice(text) for _ in range(len(each.tree) + 1)) for each in taken),
    )
    return replace(made, **changes)


def picture(sight: Sight | None = None) -> Picture:
    """A few shapes."""
    image = Image.new("RGB", (192, 192), "#f2efe6")
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 20, 90, 90), fill="#d33")
    draw.rectangle((110, 80, 170, 150), fill="#36c")
    draw.polygon([(40, 170), (70, 110), (100, 170)], fill="#3a5")
    return replace(shown(image), sight=Sight(36, "all", grid=(6, 6)) if sight is None else sight)
