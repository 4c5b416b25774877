"""What this engine's costs depend on, read from its configuration and machine; the profile given for them."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any

import torch
import vllm
from vllm.config import CompilationMode, VllmConfig

import vllm_specvlm
from vllm_specvlm.engine.options import SpecVLMOptions
from vllm_specvlm.engine.peers import Peers
from vllm_specvlm.schedule.profile import Profile, ProfileKey


def profile_key(config: VllmConfig, options: SpecVLMOptions) -> ProfileKey:
    """The key of this worker's engine; its threads are bound by now."""
    model = config.model_config
    compiled = config.compilation_config.mode not in (None, CompilationMode.NONE)
    return ProfileKey(
        model=_named(model.model),
        draft=_drafter(options),
        dtype=_dtypes(config),
        mode="compiled" if compiled else "eager",
        tensor_parallel=config.parallel_config.tensor_parallel_size,
        device=_device(),
        threads=torch.get_num_threads(),
        vllm=vllm.__version__,
        torch=str(torch.__version__),
        vllm_specvlm=vllm_specvlm.__version__,
    )


def profile_given(file: str | None, key: ProfileKey, peers: Peers) -> Profile | None:
    """The profile of the options, the first rank's on every rank: ranks that plan otherwise would wait forever.

    Raises:
        ValueError: it was measured with something else than this engine.
    """
    if file is None:
        return None
    found: list[Any] = []
    if peers.first:
        try:
            found = [Profile.load(Path(file), key).as_dict(), None]
        except ValueError as error:
            found = [None, str(error)]
    profile, refusal = peers.share(found)
    if refusal is not None:
        raise ValueError(refusal)
    return Profile.from_dict(profile)


def _drafter(options: SpecVLMOptions) -> str:
    if options.model is None:
        return "lookup"
    return _named(options.model) + ("+lookup" if options.with_lookup else "")


def _dtypes(config: VllmConfig) -> str:
    """Of activations, and of weights and the KV cache where they have others."""
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    weights, cache = config.model_config.quantization, config.cache_config.cache_dtype
    found = [dtype, *([f"{weights} weights"] if weights else [])]
    return ", ".join([*found, *([f"{cache} cache"] if cache not in ("auto", dtype) else [])])


def _named(model: str) -> str:
    """The name of a model; a folder's own name alone would say too little, and its whole path too much."""
    folder = Path(model).expanduser()
    try:
        digest = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    except OSError:
        return model
    return f"{folder.resolve().name}@{digest[:12]}"


def _device() -> str:
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
