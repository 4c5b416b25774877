"""Which path of a drafted tree the target accepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_specvlm.tree.token_tree import TokenTree


@dataclass(frozen=True, slots=True)
class Accepted:
    """The accepted path of one tree: its nodes, and their tokens followed by the bonus token (one more than nodes)."""

    path: tuple[int, ...]
    tokens: tuple[int, ...]


def walk(tree: TokenTree, row_tokens: Sequence[int]) -> Accepted:
    """Walk from the root to the child that holds the target's token, until no child does; that token is the bonus.

    `row_tokens[0]` is the target's token after the root and `row_tokens[1 + i]` its token after node i, so there is one
    more than nodes. Of siblings with one token the first wins. A placeholder (-1) is never accepted.
    Raises ValueError if the number of row tokens does not fit the tree.

    Lossless, by induction over the emitted tokens. The first one is `row_tokens[0]`, whatever was drafted. Suppose
    that the tokens emitted so far end at the accepted node v. The next one is v's row token, and it was obtained from
    the target's logits given exactly the text that ends at v, by the rule that plain decoding uses: argmax if greedy,
    or a draw from the target's processed law. The draft only decides whether the walk can go on, that is, how many of
    these tokens one forward pass yields; it never chooses or rejects one. In the sampled case this needs one thing
    more: v is reached because of the draws at v's ancestors, so v's own draw must be independent of those. It is
    independent if rows on one path use different uniforms (`draw.uniforms` is keyed by output position, and positions
    grow along a path). Siblings and cousins may share a uniform, as at most one of them is on the path. The tree must
    not depend on the uniforms of this step either, which a drafter with its own purpose or none at all satisfies.

    The rule is naive sampling over a tree as in SpecInfer (Miao et al. 2024) and SpecExec (Svirschevski et al. 2024).
    For a tree fixed before the draws no lossless rule accepts more: P(path of v accepted) <= target's P(path of v).
    """
    tokens, parents = tree.tokens, tree.parents
    if len(row_tokens) != len(tokens) + 1:
        raise ValueError(
            f"A tree of {len(tokens)} nodes needs {len(tokens) + 1} row tokens, got {len(row_tokens)}; "
            "pass the root's token first, then one per node."
        )
    path: list[int] = []
    here, wanted = -1, row_tokens[0]
    emitted = [wanted]
    # Children come after their parents, so one pass meets the nodes of the path in order.
    for node, parent in enumerate(parents):
        if parent == here and tokens[node] == wanted and wanted >= 0:
            path.append(node)
            here, wanted = node, row_tokens[node + 1]
            emitted.append(wanted)
    return Accepted(tuple(path), tuple(emitted))
