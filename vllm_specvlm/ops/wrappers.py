"""The PTX instructions of the GPU kernels, each run once: what emulation cannot vouch for (`csrc/gpu/ptx.cuh`)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vllm_specvlm.ops.library import load


class Wrapped(NamedTuple):
    """What a warp's lanes hold after each instruction.

    Attributes:
        plain: int32 [32, 4], the four 8 x 8 matrices of `left` (`cp.async`, then `ldmatrix`).
        transposed: int32 [32, 4], those of `right` (`ldmatrix.trans`).
        zeroed: int32 [32, 4], what `cp.async` without a source leaves.
        product: float32 [2, 32, 4], 1 + left right by `mma.sync`, in halves of eight columns.
        powers: float32 [32], 2 to the power of the exponents (`ex2.approx.ftz`).
    """

    plain: Tensor
    transposed: Tensor
    zeroed: Tensor
    product: Tensor
    powers: Tensor


def try_wrappers(left: Tensor, right: Tensor, exponents: Tensor) -> Wrapped:
    """Run them.

    Args:
        left, right: [16, 16], both float16 or both bfloat16, on a GPU.
        exponents: float32 [32].

    Raises:
        RuntimeError: a tensor is not as described, or the package was built without CUDA kernels.
    """
    load()
    plain, transposed, zeroed = torch.zeros(3, 32, 4, dtype=torch.int32, device=left.device)
    found = Wrapped(plain, transposed, zeroed, exponents.new_zeros(2, 32, 4), torch.zeros_like(exponents))
    torch.ops.vllm_specvlm.try_wrappers(left, right, exponents, *found)
    return found


def wrappers_reference(left: Tensor, right: Tensor, exponents: Tensor) -> Wrapped:
    """What `try_wrappers` gives, as the PTX manual describes the instructions; sums are exact for small integers."""
    lane = torch.arange(32)[:, None]
    group, pair, matrix = lane // 4, lane % 4 * 2, torch.arange(4)[None, :]
    lower, right_of = matrix % 2 * 8, matrix // 2 * 8
    product = 1 + left.float() @ right.float()
    row, column = group + matrix // 2 * 8, pair + matrix % 2
    return Wrapped(
        _words(left[group + lower, right_of + pair], left[group + lower, right_of + pair + 1]),
        _words(right[lower + pair, right_of + group], right[lower + pair + 1, right_of + group]),
        torch.zeros(32, 4, dtype=torch.int32),
        torch.stack([product[row, 8 * half + column] for half in range(2)]),
        torch.where(exponents < -126, 0.0, torch.exp2(exponents.double())).float(),
    )


def _words(low: Tensor, high: Tensor) -> Tensor:
    """int32: two numbers of 16 bits in a register, the first in the low half."""
    bits = [number.contiguous().view(torch.int16).to(torch.int32) for number in (low, high)]
    return bits[0] & 0xFFFF | bits[1] << 16
