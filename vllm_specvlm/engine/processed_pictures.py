"""Where vLLM keeps the pictures it has processed: in the front end alone, so that no request is lost over them.

Its usual way (`lru`) has them in the engine's process. The front end keeps a list of what it has *processed* and sends
a picture on that list without its pixels. But the engine only has what has *arrived*: where the request that carries
the pixels is refused after processing, is given up by its client, or is overtaken by the next one with this picture,
the engine reports a "Multi-modal cache miss" and the client gets status 500. vLLM's other way (`processor_only`, its
own choice for several front ends) keeps the pixels beside the list and sends them every time.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from vllm_specvlm.engine.options import METHOD

if TYPE_CHECKING:
    from typing import Literal

    from vllm.config import VllmConfig


def install() -> None:
    """Choose `processor_only` in the place of `lru` for engines of method `specvlm`; others keep vLLM's choice.

    Front end and engine ask the same function, each in its own process.
    """
    from vllm.multimodal.cache import factories

    stock = factories._get_cache_type
    if getattr(stock, "_specvlm", False):
        return

    @functools.wraps(stock)
    def cache_type(vllm_config: VllmConfig) -> Literal["processor_only", "lru", "shm"] | None:
        chosen = stock(vllm_config)
        given = vllm_config.additional_config
        ours = isinstance(given, dict) and METHOD in given
        return "processor_only" if ours and chosen == "lru" else chosen

    cache_type._specvlm = True  # type: ignore[attr-defined]
    factories._get_cache_type = cache_type
