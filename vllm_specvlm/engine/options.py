"""What a user may write in `--speculative-config '{"method": "specvlm", ...}'`, parsed and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from vllm_specvlm.tree.grow import TreeShape
from vllm_specvlm.tree.token_tree import MAX_NODES

METHOD = "specvlm"
PROPOSER = "vllm_specvlm.engine.speculator.Speculator"
"""The class that vLLM builds; by it its own configuration says that an engine is ours."""


@dataclass(frozen=True, slots=True)
class SpecVLMOptions:
    """The keys of the speculative-config dictionary beside `method`; unknown keys are refused.

    Raises:
        ValueError: a value out of range or of the wrong type, in one sentence.
    """

    model: str | None = None
    """Directory or name of the draft VLM, feature head or early exit; without it the lookup drafter is used."""
    num_speculative_tokens: int = 16
    """Node budget of one request's tree, 1 to 127: how many drafted tokens the target checks in one step, at most."""
    tree: str = "dynamic"
    """`dynamic` grows the tree best-first by draft probability; `chain` drafts one path."""
    planner: bool | None = None
    """Decide in every step, by measured costs, how much of the budget to use, nothing included. Default: true for
    dynamic trees, false (and not to be had) for chains and fixed trees."""
    paths: tuple[tuple[int, ...], ...] | None = None
    """A fixed tree: every node as its path of child ranks from the root, such as [[0], [1], [0, 0]]."""
    depth: int | None = None
    """Most levels of a tree. Default: 12 under the planner, 6 else, and the node budget for lookup and chains."""
    width: int = 4
    """Most nodes of one request expanded per level, that is rows of one draft forward."""
    top_k: int = 4
    """Children proposed under each expanded node."""
    text_only_draft: bool = False
    """Allow a draft that cannot see: the pictures are then holes in its context."""
    token_map: bool = False
    """Allow a draft with another tokenizer: tokens of the same text are each other's (`draft.token_map`)."""
    vision_cache_mib: int = 256
    """Bound on the draft's cache of encoded pictures, and again on that of pixels not encoded yet, MiB."""
    feature_cache_mib: int = 512
    """Bound on the target's features that a feature head has not been fed with yet, MiB."""
    with_lookup: bool = False
    """Beside a `model`: merge what the text itself suggests into its trees, as far as that turns out to be right."""
    tree_memory_mib: int = 1024
    """Bound on the keys and values of tree nodes in the target's layers, and again in the draft's, MiB of a rank."""
    lookup_min_match: int = 2
    """Shortest suffix the lookup drafter matches, tokens."""
    lookup_max_match: int = 16
    """Longest suffix the lookup drafter matches, tokens."""
    lookup_shared_tokens: int = 0
    """Tokens of other finished answers of this server the lookup drafter may draw on; 0 keeps requests apart."""
    fast_attention: bool = False
    """Use the bf16 dot-product kernel: faster, no longer bit-equal to plain decoding."""
    profile: str | None = None
    """File of `specvlm calibrate` that the planner starts from, instead of measuring anew at every start."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in ("num_speculative_tokens", "width", "top_k", "lookup_min_match", "lookup_max_match"):
            _require_int(name, getattr(self, name), 1, MAX_NODES)
        _require_int("vision_cache_mib", self.vision_cache_mib, 0, 1 << 20)
        _require_int("feature_cache_mib", self.feature_cache_mib, 0, 1 << 20)
        _require_int("tree_memory_mib", self.tree_memory_mib, 1, 1 << 20)
        _require_int("lookup_shared_tokens", self.lookup_shared_tokens, 0, 1 << 24)
        if 0 < self.lookup_shared_tokens <= self.lookup_min_match:
            raise ValueError(
                f"Option 'lookup_shared_tokens' is {self.lookup_shared_tokens}, too few to hold a match of "
                f"{self.lookup_min_match}; write 0 or a larger number."
            )
        if self.depth is not None:
            _require_int("depth", self.depth, 1, MAX_NODES)
        for name, hint in hints.items():
            if (
                hint in (bool, bool | None)
                and getattr(self, name) is not None
                and not isinstance(getattr(self, name), bool)
            ):
                raise ValueError(f"Option '{name}' is {getattr(self, name)!r}; write true or false.")
        if self.model is not None and (not isinstance(self.model, str) or not self.model):
            raise ValueError(f"Option 'model' is {self.model!r}; write the draft's directory or name, or leave it out.")
        if self.with_lookup and self.model is None:
            raise ValueError(
                "Option 'with_lookup' merges lookup into a draft's trees; name a 'model', or leave it out."
            )
        if self.token_map and self.model is None:
            raise ValueError("Option 'token_map' is for a draft 'model'; leave it out, or give one.")
        if self.tree not in ("dynamic", "chain"):
            raise ValueError(f"Option 'tree' is {self.tree!r}; write 'dynamic' or 'chain', or give 'paths'.")
        if self.paths is not None and self.tree == "chain":
            raise ValueError("Options 'paths' and 'tree': 'chain' exclude each other; leave one out.")
        if self.planner and not self._dynamic:
            raise ValueError("Option 'planner' needs dynamic trees; leave it out, or leave 'tree' and 'paths' out.")
        if self.profile is not None and (not isinstance(self.profile, str) or not self.profile):
            raise ValueError(f"Option 'profile' is {self.profile!r}; write a file of `specvlm calibrate`.")
        if self.profile is not None and not self.plans:
            raise ValueError("Option 'profile' is for the planner, which is off here; leave 'profile' out.")
        if self.lookup_min_match > self.lookup_max_match:
            raise ValueError(
                f"Option 'lookup_min_match' is {self.lookup_min_match}, above 'lookup_max_match' "
                f"{self.lookup_max_match}; lower it."
            )
        self.shape()

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> SpecVLMOptions:
        """The options of a user's dictionary (`method` is dropped, dashes in keys are underscores)."""
        known = {field.name for field in dataclasses.fields(cls)}
        values = {str(key).replace("-", "_"): value for key, value in given.items()}
        values.pop("method", None)
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"Unknown speculative-config option {unknown[0]!r} for method 'specvlm'; known are: "
                f"{', '.join(sorted(known))}."
            )
        if values.get("paths") is not None:
            values["paths"] = _paths(values["paths"])
            if values.setdefault("num_speculative_tokens", len(values["paths"])) != len(values["paths"]):
                raise ValueError(
                    f"Option 'num_speculative_tokens' is {values['num_speculative_tokens']} and 'paths' lists "
                    f"{len(values['paths'])} nodes; leave 'num_speculative_tokens' out."
                )
        return cls(**values)

    @property
    def _dynamic(self) -> bool:
        return self.tree == "dynamic" and self.paths is None

    @property
    def plans(self) -> bool:
        """Whether the planner decides how much to speculate."""
        return self._dynamic if self.planner is None else self.planner

    def shape(self) -> TreeShape:
        """The tree the builder grows under these options."""
        nodes = self.num_speculative_tokens
        if self.paths is not None:
            return TreeShape.fixed(self.paths)
        if self.tree == "chain":
            return TreeShape.chain(min(nodes, self.depth or nodes))
        default = nodes if self.model is None else 12 if self.plans else 6
        depth = default if self.depth is None else self.depth
        return TreeShape(nodes=nodes, depth=min(depth, nodes), width=self.width, top_k=self.top_k)

    def as_dict(self) -> dict[str, Any]:
        """Plain values only, as vLLM's configuration carries them between processes."""
        return dataclasses.asdict(self)


def _require_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"Option '{name}' is {value!r}; write a whole number from {low} to {high}.")


def _paths(value: object) -> tuple[tuple[int, ...], ...]:
    lists = isinstance(value, list | tuple) and bool(value) and all(isinstance(path, list | tuple) for path in value)
    if not lists or any(type(rank) is not int for path in value for rank in path):  # type: ignore[attr-defined]
        raise ValueError(f"Option 'paths' is {value!r}; write a list of rank paths such as [[0], [1], [0, 0]].")
    if any(rank >= MAX_NODES for path in value for rank in path):  # type: ignore[attr-defined]
        raise ValueError(f"Option 'paths' has a rank above {MAX_NODES - 1}; the root's best child has rank 0.")
    return tuple(tuple(path) for path in value)  # type: ignore[attr-defined]
