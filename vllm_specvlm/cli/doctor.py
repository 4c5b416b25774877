"""`specvlm doctor`: is this installation well, does this draft fit this target, and if not, what to do."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from vllm_specvlm.cli import checkup
from vllm_specvlm.cli.console import UserError, bold
from vllm_specvlm.cli.model_names import resolve


def parser() -> argparse.ArgumentParser:
    """The command line of `specvlm doctor`."""
    result = argparse.ArgumentParser(
        prog="specvlm doctor",
        description="Check this installation and, given both models, whether the draft fits the target."
        " Exit status 1 if anything is wrong.",
    )
    result.add_argument("--target", metavar="DIR", help="folder of the target model, or specvlm/reference-target")
    result.add_argument("--draft", metavar="DIR", help="folder of the draft model, or specvlm/reference-draft")
    result.add_argument(
        "--token-map", action="store_true", help="check the pair as with the option token_map: another vocabulary"
    )
    result.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    return result


def _folder(option: str, name: str) -> Path:
    folder = Path(resolve(name))
    if not (folder / "config.json").is_file():
        raise UserError(f"{option} {name} is not the folder of a model (it has no config.json): give its path.")
    return folder


def examine(target: Path | None, draft: Path | None, *, token_map: bool = False) -> list[checkup.Check]:
    """All checks in order; the pair is looked at only if both are given, `token_map` for drafts of other tokens."""
    found = [check for title, run in checkup.CHECKS.items() for check in checkup.guarded(title, run)]
    if target is not None and draft is not None:
        found += checkup.guarded("draft", lambda: checkup.check_pair(target, draft, token_map=token_map))
    return found


def report(checks: Sequence[checkup.Check]) -> str:
    """The checks for people to read, troubles with what to do about them."""
    width = max(len(check.title) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{'ok ' if check.ok else bold('BAD')}  {check.title:<{width}}  {check.detail}")
        if not check.ok and check.remedy:
            lines.append(f"{'':<{width + 7}}-> {check.remedy}")
    bad = sum(not check.ok for check in checks)
    lines.append("" if bad else "\nAll is well.")
    if bad:
        lines.append(f"{bad} of {len(checks)} checks failed.")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run the checks and print them. Returns 1 if any failed."""
    options = parser().parse_args(argv)
    if (options.target is None) != (options.draft is None):
        raise UserError("--target and --draft belong together: give both or neither.")
    if options.token_map and options.target is None:
        raise UserError("--token-map is about a pair: give --target and --draft with it.")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    target = draft = None
    if options.target is not None:
        target, draft = _folder("--target", options.target), _folder("--draft", options.draft)
    checks = examine(target, draft, token_map=options.token_map)
    ok = all(check.ok for check in checks)
    if options.json:
        print(json.dumps({"ok": ok, "checks": [dataclasses.asdict(check) for check in checks]}))
    else:
        print(report(checks))
    return 0 if ok else 1
