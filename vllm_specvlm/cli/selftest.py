"""`specvlm selftest`: does everything compute on this machine what it should, and how fast? A report to send."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_specvlm.cli.console import UserError, bold, say
from vllm_specvlm.cli.model_names import resolve

REFERENCE_TARGET = "specvlm/reference-target"
REFERENCE_DRAFT = "specvlm/reference-draft"


def parser() -> argparse.ArgumentParser:
    """The command line of `specvlm selftest`."""
    result = argparse.ArgumentParser(
        prog="specvlm selftest",
        description="Check instructions, kernels and answers on this machine, measure on a GPU, and write a report."
        " What cannot run here is said to be not run. Exit status 1 if anything failed.",
    )
    result.add_argument("--report", metavar="FILE", type=Path, default=Path("specvlm-selftest.json"))
    result.add_argument("--quick", action="store_true", help="fewer shapes, questions and modes")
    result.add_argument("--no-answers", action="store_true", help="start no engines")
    result.add_argument("--target", metavar="NAME", default=REFERENCE_TARGET, help="the model that answers")
    result.add_argument("--draft", metavar="NAME", default=REFERENCE_DRAFT, help="its draft VLM")
    result.add_argument("--json", action="store_true", help="print the report on stdout and nothing else")
    result.add_argument("--verbose", action="store_true", help="show vLLM's own messages")
    return result


def main(argv: Sequence[str]) -> int:
    """Run the checks, print them as they come, and write the report. Returns 1 if any failed."""
    options = parser().parse_args(argv)
    folder = options.report.expanduser().absolute().parent
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} for the report: --report takes a file in one that exists.")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm_specvlm.selftest import machine
    from vllm_specvlm.selftest.check import Check, Outcome
    from vllm_specvlm.selftest.plan import Plan

    answers = not options.no_answers
    target, draft = (resolve(name) if answers else name for name in (options.target, options.draft))
    plan = Plan(target, draft, options.quick, options.verbose, answers)
    checks: list[Check] = []
    for check in plan.checks(say):
        checks.append(check)
        if not options.json:
            mark = {Outcome.PASSED: "ok     ", Outcome.FAILED: bold("FAILED "), Outcome.NOT_RUN: "not run"}
            print(f"{mark[check.outcome]}  {check.name}: {check.detail}", flush=True)
    failed = [check for check in checks if check.outcome is Outcome.FAILED]
    left_out = [check for check in checks if check.outcome is Outcome.NOT_RUN]
    report: dict[str, Any] = {
        "ok": not failed,
        "date": datetime.date.today().isoformat(),
        "quick": options.quick,
        "machine": machine.describe(),
        "models": [options.target, options.draft],
        "checks": [dataclasses.asdict(check) for check in checks],
    }
    options.report.expanduser().write_text(json.dumps(report, indent=1) + "\n")
    if options.json:
        print(json.dumps(report))
    else:
        passed = len(checks) - len(failed) - len(left_out)
        print(f"\n{passed} passed, {len(failed)} failed, {len(left_out)} not run. The report is in {options.report}.")
    return 1 if failed else 0
