"""The reference pair is built once, in the user's own cache: a build is keyed by the parts it is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_specvlm import zoo
from vllm_specvlm.zoo import language_model
from vllm_specvlm.zoo.gguf_file import GgufFile


@pytest.fixture(scope="session")
def gguf() -> GgufFile:
    """SmolLM2's file; tests that need it are skipped where it cannot be fetched, and fail where it is damaged."""
    try:
        return GgufFile(language_model.find_gguf(zoo.default_home()))
    except zoo.DownloadError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def pair(gguf: GgufFile) -> zoo.ReferencePair:
    """The reference pair in the default home."""
    return zoo.reference_pair()


@pytest.fixture
def gguf_path(gguf: GgufFile) -> Path:
    """Where SmolLM2's file was found."""
    return language_model.find_gguf(zoo.default_home())
