"""Loggers that speak through vLLM's own: its format, level and handlers."""

from __future__ import annotations

import logging
from typing import Any

from vllm.logger import init_logger


def logger_for(module: str) -> Any:
    """The logger of one of our modules; below vLLM's root logger, since only that has handlers."""
    logger: logging.Logger = init_logger(f"vllm.{module}")
    return logger
