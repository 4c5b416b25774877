"""Recording a trace for the simulator: a tree is drafted at every position and none is verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_specvlm.draft.drafter import Drafter
from vllm_specvlm.engine.batch import Batch
from vllm_specvlm.engine.device_growth import DeviceProposer
from vllm_specvlm.engine.planned_growth import Growable, PlannedGrowth
from vllm_specvlm.engine.step_clock import StepClock
from vllm_specvlm.schedule.planner import Planner
from vllm_specvlm.schedule.trace import RecordedTree, TracedRequest
from vllm_specvlm.tree.accept import Accepted, walk
from vllm_specvlm.tree.grow import Grown, grow_scored
from vllm_specvlm.tree.token_tree import TokenTree
from vllm_specvlm.tree.tree_shape import TreeShape


class RecordingGrowth(PlannedGrowth):
    """Grows trees of the engine's own size and sends none. Answers stay what they are, and slow.

    What the target would accept of a tree follows from the answer's later tokens, since acceptance changes no answer.
    """

    def __init__(self, planner: Planner, clock: StepClock, batch: Batch) -> None:
        """`batch` is where answers are read when they end."""
        super().__init__(planner, clock)
        self._runner = batch
        self._grown: dict[str, tuple[Growable, list[tuple[int, Grown]]]] = {}
        self._finished: list[TracedRequest] = []

    def grow(
        self, drafter: Drafter, batch: Sequence[Growable], shape: TreeShape, device: DeviceProposer | None = None
    ) -> dict[str, TokenTree]:
        """Nothing to verify; what was grown is kept."""
        known = drafter.open([growable.request_id for growable in batch]).known
        depths, budgets = [growable.depth for growable in batch], [growable.nodes for growable in batch]
        ends = [growable.ends for growable in batch]
        for i, grown in grow_scored(drafter, shape, budgets, range(len(batch)), depths, free=known, ends=ends).items():
            request_id = batch[i].request_id
            at = len(self._runner.requests[request_id].output_token_ids)
            self._grown.setdefault(request_id, (batch[i], []))[1].append((at, grown))
        return {}

    def observe_accepted(self, trees: Mapping[str, tuple[TokenTree, Accepted]]) -> None:
        """Nothing of ours was verified."""

    def forget(self, request_id: str) -> None:
        """The request is over: its answer is complete."""
        super().forget(request_id)
        state, noted = self._runner.requests.get(request_id), self._grown.pop(request_id, None)
        if state is None or noted is None:
            return
        growable, trees = noted
        answer = [int(token) for token in state.output_token_ids]
        self._finished.append(
            TracedRequest(
                prompt=len(state.prompt_token_ids),
                tokens=len(answer),
                trees=tuple(_recorded(grown, at, answer) for at, grown in trees if len(grown.tree)),
                limit=state.sampling_params.max_tokens,
                sampled=growable.sampled,
                picture=growable.picture,
            )
        )

    def recorded(self) -> list[TracedRequest]:
        """All requests in the order in which they ended; those that still run end here."""
        for request_id in list(self._grown):
            self.forget(request_id)
        return self._finished


def _recorded(grown: Grown, at: int, answer: Sequence[int]) -> RecordedTree:
    tree = grown.tree
    reach = (0.0, *grown.log_probs)
    # Row tokens of a tree whose rows all see the answer go on: node at depth d is followed by answer token at + d.
    later = [*answer[at:], *[-1] * (max((0, *tree.depths)) + 1)]
    path = walk(tree, [later[0], *(later[depth] for depth in tree.depths)]).path
    return RecordedTree(
        at=at,
        parents=tree.parents,
        log_probs=tuple(min(round(reach[i + 1] - reach[p + 1], 4), 0.0) for i, p in enumerate(tree.parents)),
        path=path,
    )
