"""Growing and accepting trees by the operators: the same decisions on every device, and those of the Python."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from vllm_specvlm.engine import decision_trial
from vllm_specvlm.selftest.check import Check

CPU = torch.device("cpu")


def check(device: torch.device | None) -> Iterable[Check]:
    """The CPU's operators against the Python, and those of `device`, if there is one, against the CPU's."""
    yield from walks(CPU)
    if device is None:
        return
    yield from walks(device)
    yield from races(device)
    yield from growth(device)


def walks(device: torch.device) -> Iterable[Check]:
    """Which nodes are accepted, what is emitted, where it is committed to."""
    wrong, of = decision_trial.wrong_walks(device)
    yield Check.judged(f"walks on {device.type}", not wrong, f"{wrong} of {of} trees differ from the Python's")


def races(device: torch.device) -> Iterable[Check]:
    """Which token is drawn."""
    wrong, of = decision_trial.wrong_races(device)
    yield Check.judged(f"races on {device.type}", not wrong, f"{wrong} of {of} winners differ from the CPU's")


def growth(device: torch.device) -> Iterable[Check]:
    """Trees grown of random proposals, and their descriptions."""
    wrong, of = decision_trial.wrong_growths(device)
    yield Check.judged(f"growth on {device.type}", not wrong, f"{wrong} of {of} trees differ from the CPU's")
