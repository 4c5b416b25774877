"""The cases of one family that the covering array leaves out: `python -m tests.exactness.all_pairs internvl`.

A second argument of 20 takes every twentieth. A process of its own for each family, since engines stay.
"""

from __future__ import annotations

import sys
import traceback
from itertools import product

import tests.conftest  # noqa: F401 - the environment of tests, before anything imports vLLM
from tests.exactness.support_cases import AXES, CASES
from tests.exactness.test_pairwise import compare


def main() -> None:
    """Run them, and name each with what came out."""
    family, every = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
    others = [case for case in product(*AXES.values()) if case[0] == family and case not in CASES]
    failed = 0
    for case in others[::every]:
        try:
            compare(*case)
        except Exception:
            failed += 1
            traceback.print_exc(file=sys.stdout)
            print("failed", *case, sep=", ", flush=True)
        else:
            print("passed", *case, sep=", ", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
