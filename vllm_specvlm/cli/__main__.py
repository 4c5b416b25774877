"""`python -m vllm_specvlm.cli`."""

import sys

from vllm_specvlm.cli.main import main

if __name__ == "__main__":  # vLLM's spawned workers import the main module again
    sys.exit(main())
