"""A tree inside the flat list of integers in which vLLM's scheduler carries a request's drafts."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_specvlm.tree.token_tree import MAX_NODES, TokenTree

_INT32_MAX = 2**31 - 1


class FlatCode:
    """Packs a tree into one integer per node: `token + ((i - 1 - parent) << bits)`, `bits` wide enough for any token.

    The shifted part says how far the parent lies behind the node just before, so it is 0 along a chain. Hence a plain
    list of tokens, with -1 as placeholder, is the code of that chain, and, nodes being in topological order, every
    prefix of a code is the code of a tree: a scheduler that knows nothing of trees may cut the list anywhere.
    The code is stateless and fits int32. `bits` is the width in use.
    """

    def __init__(self, vocab_size: int) -> None:
        """Raises ValueError if tokens of this vocabulary and 127 nodes do not fit int32 (from 2**24 tokens up)."""
        if vocab_size < 1:
            raise ValueError(f"A vocabulary of {vocab_size} tokens cannot be coded; give its size.")
        self.vocab_size = vocab_size
        self.bits = max(1, (vocab_size - 1).bit_length())
        if vocab_size - 1 + ((MAX_NODES - 1) << self.bits) > _INT32_MAX:
            raise ValueError(f"Trees over {vocab_size} tokens do not fit 32-bit codes; {2**24} is the most.")

    def encode(self, tree: TokenTree) -> list[int]:
        """The tree's code, one int per node.

        Raises ValueError for a token outside the vocabulary and for a placeholder that does not follow the node
        before it, since -1 carries no parent.
        """
        codes: list[int] = []
        for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
            back = node - 1 - parent
            if token >= self.vocab_size:
                raise ValueError(f"Token {token} is not in the vocabulary of {self.vocab_size}; draft with its tokens.")
            if token < 0 and back:
                raise ValueError(
                    f"Node {node} is a placeholder apart from its parent {parent}; placeholders only continue a chain."
                )
            codes.append(token + (back << self.bits))
        return codes

    def decode(self, codes: Sequence[int]) -> TokenTree:
        """The tree behind `codes`; plain tokens and -1 placeholders give a chain.

        Raises ValueError for a code that names no token of the vocabulary or no earlier node as its parent.
        """
        low = (1 << self.bits) - 1
        tokens: list[int] = []
        parents: list[int] = []
        for node, code in enumerate(codes):
            token = code & low if code >= 0 else code
            parent = node - 1 - (code >> self.bits) if code >= 0 else node - 1
            if not -1 <= token < self.vocab_size or parent < -1:
                raise ValueError(
                    f"Draft code {code} at place {node} is neither a token of a vocabulary of {self.vocab_size} "
                    "nor a tree node; pass drafts made by FlatCode.encode with the same vocabulary size."
                )
            tokens.append(token)
            parents.append(parent)
        return TokenTree(tuple(tokens), tuple(parents))
