"""The reference models embedded in the project: a small vision-language target and its draft, and pictures to ask them
about.

>>> from vllm_specvlm import zoo
>>> pair = zoo.reference_pair()          # built on the first call, found on later ones
>>> zoo.resolve("specvlm/reference-draft") == str(pair.draft)
True

Nothing here imports vLLM, and importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from vllm_specvlm.zoo.errors import DownloadError, ZooError
from vllm_specvlm.zoo.pair import MODELS, ReferencePair, default_home, reference_pair, resolve
from vllm_specvlm.zoo.prompts import Prompt, prompts, sample_picture, sample_question

__all__ = [
    "MODELS",
    "DownloadError",
    "Prompt",
    "ReferencePair",
    "ZooError",
    "default_home",
    "prompts",
    "reference_pair",
    "resolve",
    "sample_picture",
    "sample_question",
]
