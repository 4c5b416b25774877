"""Which checks run on which machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from vllm_specvlm import ops
from vllm_specvlm.engine.attention_choice import HEAD_SIZES
from vllm_specvlm.engine.tree_attention import KernelAttention
from vllm_specvlm.selftest import attention, decisions, exactness, instructions, machine, speed
from vllm_specvlm.selftest.check import Check, guarded

CPU = torch.device("cpu")
_CPU_PAGE = 32
_GPU_PAGE = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """What the user asked for."""

    target: str
    draft: str
    quick: bool
    verbose: bool
    answers: bool = True
    """Run engines."""

    def checks(self, say: Callable[[str], None]) -> Iterator[Check]:
        """All checks, in the order in which they can be trusted: instructions, kernels, answers, speed."""
        device = machine.gpu()
        seeds = 1 if self.quick else 4
        say("kernels of the CPU")
        grid = attention.kinds((64, 128) if self.quick else HEAD_SIZES, _CPU_PAGE, quick=self.quick)
        yield from guarded("CPU kernel", lambda: attention.check(attention.CpuAttention(), grid, CPU, seeds))
        few = attention.kinds((64,), _GPU_PAGE, quick=True)
        yield from guarded("plain torch", lambda: attention.check(attention.plain_torch(), few, CPU, 1))
        yield from self._kernels(device, seeds, say)
        yield from self._answers(device, say)
        if device is None:
            yield Check.not_run("speed", "there is no GPU, and the CPU's kernels are timed by benchmarks/kernels.py")
        else:
            say("speed")
            yield from guarded("speed", lambda: speed.check(device, quick=self.quick))

    def _kernels(self, device: torch.device | None, seeds: int, say: Callable[[str], None]) -> Iterator[Check]:
        on = device if ops.has_cuda_kernels() else None
        if on is None:
            why = "there is no GPU" if device is None else "the package was built without CUDA kernels"
            for name in ("PTX instructions", "CUDA kernels", "commit of accepted rows", "decisions on the GPU"):
                # Kernels that are missing where a GPU is there are no success.
                yield Check.not_run(name, why) if device is None else Check.judged(name, False, why)
        else:
            say("PTX instructions")
            yield from guarded("PTX instructions", lambda: instructions.check(device=on))
            say("kernels of the GPU")
            grid = attention.kinds(HEAD_SIZES, _GPU_PAGE, quick=self.quick)
            yield from guarded("CUDA kernels", lambda: attention.check(KernelAttention(), grid, on, seeds))
            yield from guarded("commit of accepted rows", lambda: attention.check_commit(grid, on))
        yield from guarded("decisions", lambda: decisions.check(on))
        if device is not None:
            few = attention.kinds((64, 128), _GPU_PAGE, quick=True)
            yield from guarded("plain torch", lambda: attention.check(attention.plain_torch(), few, device, 1))

    def _answers(self, device: torch.device | None, say: Callable[[str], None]) -> Iterator[Check]:
        if not self.answers:
            yield Check.not_run("answers", "--no-answers was given")
            return
        say("answers of plain and speculative engines, each in a process of its own")
        # FlashAttention has no float32; float16 rounds less than bfloat16.
        for dtype in ("float32",) if device is None else ("float16",) if self.quick else ("float16", "bfloat16"):
            yield from guarded(
                f"answers, {dtype}",
                functools.partial(
                    exactness.check,
                    self.target,
                    self.draft,
                    dtype,
                    eager_only=device is None or self.quick,
                    quick=self.quick,
                    verbose=self.verbose,
                ),
            )
