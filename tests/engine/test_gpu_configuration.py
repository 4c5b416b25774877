"""How an engine on NVIDIA GPUs is configured, and what is refused there; nothing here needs one."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import EngineArgs
from vllm.config import ParallelConfig
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl

from tests.tiny.checkpoints import build
from vllm_specvlm.engine import attention_choice, attention_gpu, configure
from vllm_specvlm.engine.attention_gpu import TreeFlashAttentionImpl, adopt
from vllm_specvlm.engine.gathered_attention import GatheredAttention


def translated(patch: pytest.MonkeyPatch, device: str = "cuda", **options: Any) -> tuple[EngineArgs, list[str]]:
    """What becomes of the arguments on such a device, and what is warned of."""
    arguments = {"model": str(build("llava")), "dtype": "bfloat16", "max_model_len": 512, **options}
    args = EngineArgs(**arguments, speculative_config={"method": "specvlm"})
    target = args.create_model_config()
    platform = SimpleNamespace(is_cpu=lambda: device == "cpu", is_cuda=lambda: device == "cuda", device_name=device)
    warned: list[str] = []
    with patch.context() as here:
        here.setattr("vllm.platforms.current_platform", platform)
        here.setattr(configure, "logger", SimpleNamespace(warning_once=warned.append))
        configure.translate(args, target, ParallelConfig())
    return args, warned


def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our worker for GPUs, FlashAttention, and a warning that says what was never done."""
    args, warned = translated(monkeypatch)
    assert args.worker_cls == "vllm_specvlm.engine.worker_gpu.TreeGPUWorker"
    assert args.attention_backend == "FLASH_ATTN"
    (warning,) = warned
    for word in ("compiled", "emulated", "sanitised", "statically checked", "not yet run on a GPU", "specvlm selftest"):
        assert word in warning
    assert translated(monkeypatch, attention_backend="flash_attn")[0].attention_backend is not None
    assert translated(monkeypatch, attention_backend="auto")[0].attention_backend == "FLASH_ATTN"


def test_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    args, warned = translated(monkeypatch, "cpu")
    assert args.worker_cls == "vllm_specvlm.engine.worker_cpu.TreeCPUWorker"
    assert args.attention_backend is None and not warned


@pytest.mark.parametrize(
    ("device", "options", "says"),
    [
        ("rocm", {}, "on device 'rocm'; use an NVIDIA GPU, or vLLM's CPU backend"),
        ("cuda", {"dtype": "float32"}, "on GPUs in float32, which FlashAttention has not; set --dtype bfloat16"),
        ("cuda", {"attention_backend": "FLASHINFER"}, "with attention backend 'FLASHINFER'; set --attention-backend"),
        ("cuda", {"attention_config": {"backend": "TRITON_ATTN"}}, "attention backend 'TRITON_ATTN'"),
        ("cuda", {"kv_cache_dtype": "fp8"}, "KV cache type 'fp8'"),
    ],
)
def test_refusals(device: str, options: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="Method 'specvlm' does not run") as caught:
        translated(monkeypatch, device, **options)
    assert says in str(caught.value)


PLAIN: dict[str, Any] = {
    "attn_type": AttentionType.DECODER,
    "sliding_window": (-1, -1),
    "logits_soft_cap": 0,
    "alibi_slopes": None,
    "sinks": None,
    "kv_cache_dtype": "auto",
    "kv_sharing_target_layer_name": None,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_size": 64,
    "vllm_flash_attn_version": 2,
}


def layer(**changes: Any) -> Attention:
    """A layer that was not built: only its attributes are looked at."""
    made = Attention.__new__(Attention)
    torch.nn.Module.__init__(made)
    made.kv_cache_torch_dtype = changes.pop("dtype", torch.bfloat16)
    made.impl = FlashAttentionImpl.__new__(FlashAttentionImpl)
    for name, value in {**PLAIN, **changes}.items():
        setattr(made.impl, name, value)
    return made


def test_layers_of_a_kind_are_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []

    def choose(kind: Any, device: Any, ways: Any, verdict: Any) -> Any:
        tried.append(kind)
        return GatheredAttention()

    monkeypatch.setattr(attention_choice, "choose", choose)
    layers = {"a": layer(), "b": layer(), "c": layer(head_size=128)}
    adopt(layers, torch.device("cpu"), lambda trouble: trouble)
    assert {type(one.impl) for one in layers.values()} == {TreeFlashAttentionImpl}
    assert len(tried) == 2
    assert layers["a"].impl.tree_attention is layers["b"].impl.tree_attention
    assert layers["a"].impl.tree_attention is not layers["c"].impl.tree_attention


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"attn_type": AttentionType.ENCODER_ONLY}, "not as a decoder"),
        ({"sliding_window": (511, 0)}, "has a sliding window of 512 tokens"),
        ({"logits_soft_cap": 30.0}, "soft-caps its logits at 30.0"),
        ({"alibi_slopes": torch.ones(4)}, "uses ALiBi"),
        ({"sinks": torch.ones(4)}, "uses attention sinks"),
        ({"dtype": torch.uint8, "kv_cache_dtype": "fp8"}, "keeps its KV cache as fp8"),
        ({"kv_sharing_target_layer_name": "b"}, "shares the KV cache of layer 'b'"),
    ],
)
def test_layers_that_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="cannot verify trees in layer 'a'") as caught:
        adopt({"a": layer(**change)}, torch.device("cpu"), lambda trouble: trouble)
    assert says in str(caught.value)


def test_another_backend_is_refused() -> None:
    class OtherImpl(FlashAttentionImpl):
        pass

    made = layer()
    made.impl.__class__ = OtherImpl
    with pytest.raises(ValueError, match="not vLLM's FlashAttention"):
        attention_gpu.adopt({"a": made}, torch.device("cpu"), lambda trouble: trouble)


_IMPORTS = """
import sys
import subprocess
import sys
from types import SimpleNamespace
import vllm.platforms
vllm.platforms.current_platform
real = vllm.platforms._current_platform
import vllm_specvlm.engine.worker_gpu
import vllm_specvlm.engine.configure
import vllm_specvlm.engine.compat_pair
import vllm_specvlm.engine.drafters
import vllm_specvlm.selftest.plan
from vllm_specvlm.engine import compat
import torch
type(real).is_cpu = lambda self: False
found = compat.check()
assert len(found) > 60 and not [one for one in found if not one.ok], [one for one in found if not one.ok]
assert not [name for name in sys.modules if name.startswith("vllm.v1.worker.cpu")], sys.modules.keys()
assert torch.Tensor.pin_memory.__name__ == "pin_memory"
type(real).is_cpu = lambda self: True
assert len(compat.check()) > len(found)
assert torch.Tensor.pin_memory.__name__ == "fake_pin_memory", "vLLM's CPU worker leaves torch alone now"
"""


def test_nothing_of_vllms_cpu_worker_is_imported() -> None:
    """Its modules replace torch's CUDA streams, events and pinned memory by empty functions."""
    done = subprocess.run([sys.executable, "-c", _IMPORTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
