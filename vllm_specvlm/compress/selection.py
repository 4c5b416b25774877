"""One of several compressors, chosen per picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vllm_specvlm.compress.base import Compressor
from vllm_specvlm.compress.compressed import Compressed
from vllm_specvlm.compress.config import CompressorConfig
from vllm_specvlm.compress.count import count
from vllm_specvlm.compress.gate import Gate, straight_through

_TINY = torch.finfo(torch.float32).tiny


class Selection(Compressor):
    """Kind `select`, SpecVLM's elastic compressor: a gate picks one branch, and only that one is run.

    Serving takes the branch of the greatest logit. Training draws one (see `straight_through`) and multiplies what it
    gives by a factor of value 1, through which the drafter's loss reaches the gate; `Compressed.cost` reaches it as
    well. The parameters of branches not drawn get no gradient in that step. While it explores, all logits are 0.

    The factor says whether the drafter would like this branch's tokens *larger*. A drafter that normalises its inputs
    cannot tell, and a branch without tokens has nothing to multiply: there, train the gate with the score function
    (Williams 1992) instead, (loss - baseline).detach() * log_probability, which is unbiased for every drafter.
    """

    def __init__(self, config: CompressorConfig, hidden: int, branches: Sequence[Compressor]) -> None:
        super().__init__(config)
        self.branches = nn.ModuleList(branches)
        self.gate = Gate(hidden, config.gate_hidden, len(branches))

    def _compress(self, tokens: Tensor, before: Tensor) -> Compressed:
        visual = tokens.shape[0]
        logits = self.gate(tokens, before)
        if self.training and self.explore:
            logits = torch.zeros_like(logits)
        probabilities = logits.softmax(0)
        shares = [count(branch, visual) / visual for branch in self.config.branches]
        cost = (probabilities * torch.tensor(shares, device=logits.device)).sum()
        if not self.training:
            choice = int(logits.argmax())
            run: Compressed = self.branches[choice](tokens, before)
            return Compressed(run.tokens, cost, choice, probabilities, run.global_vector)
        noise = -torch.empty_like(logits).exponential_().clamp_min_(_TINY).log()
        choice, factor = straight_through(logits, noise, self.tau)
        run = self.branches[choice](tokens, before)
        factor = factor.to(tokens.dtype)
        vector = None if run.global_vector is None else run.global_vector * factor
        return Compressed(run.tokens * factor, cost, choice, probabilities, vector)
