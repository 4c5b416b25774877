"""Let a CUDA build of torchvision be imported beside a CPU build of torch.

torchvision registers Python fakes for two operators, ``nms`` and ``qnms``, that its native library defines. The CUDA
build's library cannot load where torch has no CUDA, the operators then do not exist, and the import fails although
image and video processors never call them. Declaring the two operators first is enough.

``./run`` copies this file into the environment it makes, together with a ``.pth`` file that imports it when Python
starts; it costs nothing until somebody imports torchvision. Where torchvision's own library loads, nothing is declared.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_alive: list[object] = []  # the operators exist as long as the Library object that declared them


class TorchvisionFinder(importlib.abc.MetaPathFinder):
    """Sees the first import of torchvision, prepares it, and leaves the finding to the finders after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Always None: this finder finds nothing."""
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            spec = importlib.machinery.PathFinder.find_spec(fullname)
            if spec is not None and spec.origin is not None:
                _declare_missing_operators(Path(spec.origin).parent / "_C.so")
        return None


def _declare_missing_operators(library: Path) -> None:
    import torch

    if torch.version.cuda is not None:
        return
    try:
        torch.ops.load_library(str(library))
    except OSError:
        declared = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _alive.append(declared)


sys.meta_path.insert(0, TorchvisionFinder())
