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
    that the tokens emitted so far end at the accepted node v. The next one is v's row token, which was obtained from
    the target's logits given exactly the text that ends at v, by the rule of plain decoding. The draft decides only how
    many tokens one forward pass yields; it never chooses one and never rejects one.

    Greedy: the rule is argmax, so the text is plain decoding's.

    Sampled: let v's row token be the winner of the race of the target's law at v with the noise of the output position
    after v (`race.race`, `noise.position_keys`). Then each emitted token is the one that plain decoding draws there
    with the same noise: the text is a function of it and of the target, the same for every tree, even for one that
    knows the noise, and ours does. As the noise of different positions is independent, the text's law is the target's.
    Siblings and cousins share their noise, which is harmless, as one of them at most is on the path. If rows were drawn
    by other means, two things would be needed: draws along a path independent of each other, and a tree that does not
    depend on this step's draws.

    The rule is naive sampling over a tree as in SpecInfer (Miao et al. 2024) and SpecExec (Svirschevski et al. 2024).
    No lossless rule accepts more of a tree fixed before the draws: node v can be on the accepted path only if the text
    runs through v, and here it is whenever the text does.
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
