"""Driving an engine through batches and tree sizes, so that its own clock sees what each costs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_specvlm.schedule.profile import Profile
from vllm_specvlm.schedule.reading import TimedPass

CONTEXTS = (128, 768)
"""Prompt tokens: what they add to a pass is told by the difference."""
BATCHES = (1, 2, 4, 8, 16, 32, 64)
NODES = (0, 1, 2, 4, 8, 16, 32)
ROOM = 384
"""Tokens that an answer may get: all sizes' steps, most of them with accepted drafts."""
_STEPS = 6
"""Steps of each size. The first after a change is not like the others, so there is one more."""
_LONGEST_STEP = 2.0
_LONGEST_PROMPTS = 30.0
"""Seconds beyond which a size is left out; the curves go on in proportion from the largest that was measured."""
_TEXT = (
    "The picture shows a market square in the morning. Two women carry baskets of apples and bread past a fountain, "
    "a dog sleeps in the shade of a cart, and behind the rooftops one sees 3 towers, 12 chimneys and a flag. "
    "What happens next? First the baker opens his shop; then children come running from the school. "
)


@dataclass(frozen=True, slots=True)
class Grid:
    """What to go through: every batch at every context, with trees of every size."""

    contexts: Sequence[int]
    batches: Sequence[int]
    nodes: Sequence[int]
    """Ascending, 0 first."""
    steps: int = _STEPS


def settings(target: str, draft: str | None, grid: Grid) -> dict[str, Any]:
    """Arguments that the `LLM` has to be started with; `draft` None is lookup."""
    # Six levels show what a pass costs as well as more do, and answers last longer.
    speculative = {"method": "specvlm", "num_speculative_tokens": max(grid.nodes), "planner": True, "depth": 6}
    return {
        "model": target,
        "max_model_len": max(grid.contexts) + ROOM,
        "max_num_seqs": max(grid.batches),
        "enable_prefix_caching": False,  # prompts are alike, and each has to be computed
        "speculative_config": speculative | ({} if draft is None else {"model": draft}),
        "seed": 0,
    }


def calibrate(llm: Any, grid: Grid, tell: Callable[[float, str], None]) -> tuple[Profile, list[str]]:
    """The profile of a running engine, its curves observed along the grid, and what was left out and why.

    Args:
        llm: an `LLM` started with `settings`.
        grid: sizes that would take too long, or have no room in the cache, are left out.
        tell: called with the share that is done and what is next.
    """
    points = list(itertools.product(grid.contexts, grid.batches))
    before = _profile(llm)
    # Shares of the work by the first estimate; the engine's curves get better on the way.
    work = [_work(before, context, batch, grid) for context, batch in points]
    total, done = sum(work), 0.0
    left_out: list[str] = []
    for (context, batch), share in zip(points, work, strict=True):
        tell(done / total, f"{batch} at once, context {context}")
        left_out += _measure(llm, context, batch, grid)
        done += share
    tell(1.0, "done")
    passes = [TimedPass(**each) for each in llm.collective_rpc("specvlm_timed")[0]]
    llm.collective_rpc("specvlm_force", args=(None,))
    return dataclasses.replace(_profile(llm), costs=before.costs.fitted(passes)), left_out


def _profile(llm: Any) -> Profile:
    return Profile.from_dict(llm.collective_rpc("specvlm_profile")[0])


def _work(profile: Profile, context: int, batch: int, grid: Grid) -> float:
    """Estimated seconds of one batch at one context."""
    costs = profile.costs
    prompts = costs.tree.at(batch * context)
    if prompts > _LONGEST_PROMPTS:
        return 1e-3
    steps = [costs.tree.at(batch * (1 + nodes)) + 6 * costs.draft.at(4 * batch) for nodes in grid.nodes]
    return prompts + (grid.steps + 1) * sum(seconds for seconds in steps if seconds <= _LONGEST_STEP)


def _measure(llm: Any, context: int, batch: int, grid: Grid) -> list[str]:
    """One batch at one context, with trees of every size; what was left out."""
    engine, costs = llm.llm_engine, _profile(llm).costs
    cache = engine.vllm_config.cache_config
    here = f"{batch} at once, context {context}"
    if batch * (context + ROOM) > cache.num_gpu_blocks * cache.block_size:
        return [f"{here} (no room in the KV cache)"]
    if costs.tree.at(batch * context) > _LONGEST_PROMPTS:
        return [f"{here} (its prompts take more than {_LONGEST_PROMPTS:.0f} s)"]
    llm.collective_rpc("specvlm_force", args=(0,))
    names = _ask(llm, context, batch)
    waiting = set(names)
    while waiting and engine.has_unfinished_requests():
        waiting -= {output.request_id for output in engine.step()}
    # The drafter reads the prompts when it first drafts, at most a step's rows at a time.
    room = engine.vllm_config.scheduler_config.max_num_batched_tokens
    feeding = -(-batch * context // room)
    left_out: list[str] = []
    for nodes in grid.nodes:
        rows = batch * (1 + nodes)
        if rows > room or (nodes and costs.tree.at(rows) > _LONGEST_STEP):
            left_out.append(
                f"{here}, trees of {nodes} and more (steps of more than {_LONGEST_STEP:.0f} s, or too wide)"
            )
            break
        llm.collective_rpc("specvlm_force", args=(nodes,))
        for _ in range(grid.steps + 1 + (feeding if nodes else 0)):
            if engine.has_unfinished_requests():
                engine.step()
        feeding = 0 if nodes else feeding
    engine.abort_request(names)
    while engine.has_unfinished_requests():
        engine.step()
    return left_out


def _ask(llm: Any, context: int, batch: int) -> list[str]:
    """Start requests of so many prompt tokens each, every one with another beginning."""
    from vllm import SamplingParams

    text = llm.get_tokenizer().encode(_TEXT)
    params = SamplingParams(temperature=0.0, max_tokens=ROOM - 1, ignore_eos=True, detokenize=False)
    names = []
    for i in range(batch):
        tokens = list(itertools.islice(itertools.cycle(text), i % len(text), i % len(text) + context))
        name = f"calibrate-{context}-{batch}-{i}"
        llm.llm_engine.add_request(name, {"prompt_token_ids": tokens}, params)
        names.append(name)
    return names
