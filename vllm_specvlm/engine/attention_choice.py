"""Which way of attending tree rows a GPU gets: the first that can run there and that passes a short trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from vllm_specvlm import ops
from vllm_specvlm.engine.log import logger_for
from vllm_specvlm.engine.tree_attention import KernelAttention, TreeAttention
from vllm_specvlm.engine.trial import DRAFTING, TOLERANCE, VERIFYING, LayerKind, Trial, commit_is_right

logger = logger_for(__name__)

HEAD_SIZES = (64, 80, 96, 128, 256)
"""That the kernels were compiled for."""
_LEAST_CAPABILITY = (8, 0)
Verdict = Callable[[str | None], str | None]
"""Makes of what is the matter on this rank what is the matter on any (`Peers.verdict`)."""


def kernel_trouble(kind: LayerKind, device: torch.device) -> str | None:
    """Why the kernel cannot serve these layers on this device, before it is tried; None if it may."""
    if not ops.has_cuda_kernels():
        return "the package was built without CUDA kernels"
    if kind.head_size not in HEAD_SIZES:
        return f"heads of {kind.head_size} have no kernel, only {HEAD_SIZES} have"
    if kind.dtype not in TOLERANCE:
        return f"{kind.dtype} has no kernel"
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        return f"the GPU's compute capability {capability[0]}.{capability[1]} is below 8.0"
    return None


def trouble(way: TreeAttention, kind: LayerKind, device: torch.device) -> str | None:
    """Why this way is not to be used for layers of this kind: what a trial of it gave; None if it is right."""
    if isinstance(way, KernelAttention) and (reason := kernel_trouble(kind, device)) is not None:
        return reason
    try:
        for seed, shapes in enumerate((VERIFYING, DRAFTING)):
            error = Trial(kind, shapes, device, seed).error(way)
            if error > TOLERANCE[kind.dtype]:
                return f"its results are wrong by {error:.1e}"
        if isinstance(way, KernelAttention) and not commit_is_right(kind, device):
            return "its commit of accepted rows is wrong"
    except Exception as error:
        return f"it fails: {type(error).__name__}: {error}"
    return None


def choose(kind: LayerKind, device: torch.device, ways: Sequence[TreeAttention], verdict: Verdict) -> TreeAttention:
    """The first way that passes on all ranks.

    Raises:
        RuntimeError: none does.
    """
    for way in ways:
        reason = verdict(trouble(way, kind, device))
        if reason is None:
            logger.info("Tree rows of layers with %s: %s.", kind, way.name)
            return way
        logger.warning(
            "Tree rows of layers with %s are not attended by '%s': %s. Answers stay right; run `specvlm selftest` and "
            "send its report.",
            kind,
            way.name,
            reason,
        )
    raise RuntimeError(
        f"No way of attending tree rows passes its check on this device for layers with {kind}; "
        "serve this model without --speculative-config, and send the report of `specvlm selftest`."
    )
