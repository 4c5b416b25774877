"""What a soaked server holds in memory, counted inside its processes: `GET /soak/census` answers with JSON.

vLLM loads this into its API server (`--middleware benchmarks.soak_census.Counted`) and its worker
(`--worker-extension-cls benchmarks.soak_census.Counting`). For each of the two there is: private memory; what of it is
allocated, and what the C allocator keeps for the next allocation (large blocks and all of torch's tensors are the C
allocator's; Python's own small objects are counted, in blocks); objects of the plugin; and where names of requests are
held by any of them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

PATH = "/soak/census"
NAMED = "soak"
"""How the names of the soak's requests begin, behind what vLLM puts before them."""
_OURS = "vllm_specvlm"


class _Allocated(ctypes.Structure):
    """glibc's `struct mallinfo2`, summed over all its arenas."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "used", "free", "keepcost")
    ]


def private_mib(process: int | str) -> int:
    """Resident memory of a process that it shares with no other. Raises OSError if there is none."""
    sizes = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in sizes if line.startswith("Private_")) >> 10


def census(runner: Any = None) -> dict[str, Any]:
    """Of this process; `runner`: the worker's, if it has one."""
    from tests.exactness.held import holders, traced

    before = private_mib("self")
    gc.unfreeze()  # vLLM hides what was there at the start
    gc.collect()
    known = [each for each in gc.get_objects() if str(getattr(type(each), "__module__", "")).startswith(_OURS)]
    ours = [each for each in known if each is not runner]
    running = [name for name in getattr(runner, "requests", ()) if name.startswith(f"chatcmpl-{NAMED}")]
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Allocated
    found = libc.mallinfo2()
    return {
        "private_mib": before,
        "allocated_mib": (found.used + found.hblkhd) >> 20,
        "kept_by_allocator_mib": found.free >> 20,
        "python_blocks": sys.getallocatedblocks(),
        "objects_of_ours": len(ours),
        "requests_held": traced([holders(runner), ours], f"chatcmpl-{NAMED}", runner) + running,
    }


def trim() -> int:
    """Give what the C allocator keeps back to the system; private memory then, in MiB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return private_mib("self")


class Counting:
    """Methods for vLLM's worker."""

    def soak_census(self) -> dict[str, Any]:
        """Of the worker's process."""
        return census(self.model_runner)  # type: ignore[attr-defined]

    def soak_trim(self) -> int:
        """Of the same process."""
        return trim()


class Counted:
    """ASGI middleware that answers at `PATH`, and at `PATH`/trim after giving memory back."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        """`app` answers everything else."""
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """One event in, or one answer out."""
        path = scope.get("path", "")
        if not path.startswith(PATH):
            await self._app(scope, receive, send)
            return
        engine = scope["app"].state.engine_client
        if path.endswith("/trim"):
            (there,) = await engine.collective_rpc("soak_trim")
            found: dict[str, Any] = {"front_end": trim(), "worker": there}
        else:
            (there,) = await engine.collective_rpc("soak_census")
            found = {"front_end": census(), "worker": there}
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(found).encode()})
