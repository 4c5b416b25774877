"""A reference target worth measuring on: a LLaVA of DINOv2-small and SmolLM2-135M that describes scenes, reads text and
charts, counts, answers short questions and converses, with 144 visual tokens a picture, or 576.

>>> from vllm_specvlm import zoo
>>> zoo.resolve("specvlm/scenes-target")        # built on the first call
>>> from vllm_specvlm.zoo.scenes import test_questions
>>> question = test_questions("read")[0]        # pictures and phrasings that were never trained on

Nothing here imports vLLM, and importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from vllm_specvlm.zoo.scenes.build import scenes_target
from vllm_specvlm.zoo.scenes.test_set import TestQuestion, test_questions

__all__ = ["TestQuestion", "scenes_target", "test_questions"]
