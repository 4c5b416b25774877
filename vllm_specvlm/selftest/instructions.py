"""Does every PTX instruction of the kernels do on this GPU what the emulator takes it for?"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from vllm_specvlm import ops
from vllm_specvlm.ops.wrappers import Wrapped
from vllm_specvlm.selftest.check import Check

_INSTRUCTIONS = {
    "plain": "cp.async and ldmatrix",
    "transposed": "ldmatrix.trans",
    "zeroed": "cp.async without a source",
    "product": "mma.sync",
    "powers": "ex2.approx.ftz",
}
_RELATIVE = 2.0**-21
"""Of the powers: twice what the PTX manual allows."""

Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Wrapped]


def check(run: Run = ops.try_wrappers, device: torch.device | None = None) -> Iterable[Check]:
    """A check for each instruction and dtype; `run` stands for `ops.try_wrappers` on `device`."""
    for dtype in (torch.float16, torch.bfloat16):
        random = torch.Generator().manual_seed(3)
        # Small integers: sums of sixteen products are exact, in whatever order they are added.
        left, right = (torch.randint(-8, 9, (16, 16), generator=random).to(dtype) for _ in range(2))
        exponents = torch.linspace(-126, 30, 32)
        exponents[:3] = torch.tensor([-140.0, -126.5, 0.0])
        expected = ops.wrappers_reference(left, right, exponents)
        found = run(left.to(device), right.to(device), exponents.to(device))
        for name, instruction in _INSTRUCTIONS.items():
            one, other = getattr(found, name).cpu(), getattr(expected, name)
            if name == "powers":
                difference = float(((one - other).abs() / other.clamp(min=2.0**-126)).max())
                ok, detail = difference <= _RELATIVE, f"relative error {difference:.1e}"
            else:
                wrong = int((one != other).sum())
                ok, detail = not wrong, f"{wrong} of {other.numel()} values differ"
            dtype_name = str(dtype).removeprefix("torch.")
            yield Check.judged(f"PTX {instruction}, {dtype_name}", ok, detail)
