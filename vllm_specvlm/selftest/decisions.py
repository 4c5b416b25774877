"""Growing and accepting trees by the operators: the same decisions on every device, and those of the Python."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from vllm_specvlm.engine import decision_trial
from vllm_specvlm.selftest.check import Check

CPU = torch.device("cpu")


def check(device: torch.device | None) -> Iterable[Check]:
    """The CPU's operators against the Python, and those of `device`, if there is one, against the CPU's."""
    yield _walks(CPU)
    if device is None:
        return
    yield _walks(device)
    wrong, of = decision_trial.wrong_races(device)
    yield Check.judged(f"races on {device.type}", not wrong, f"{wrong} of {of} winners differ from the CPU's")
    wrong, of = decision_trial.wrong_growths(device)
    yield Check.judged(f"growth on {device.type}", not wrong, f"{wrong} of {of} trees differ from the CPU's")


def _walks(device: torch.device) -> Check:
    wrong, of = decision_trial.wrong_walks(device)
    return Check.judged(f"walks on {device.type}", not wrong, f"{wrong} of {of} trees differ from the Python's")
