"""From the user's `{"method": "specvlm", ...}` to an engine that runs us: translation and refusals."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vllm_specvlm import ops
from vllm_specvlm.draft import exit_config, head_config
from vllm_specvlm.engine import exporter
from vllm_specvlm.engine.log import logger_for
from vllm_specvlm.engine.options import METHOD, PROPOSER, SpecVLMOptions
from vllm_specvlm.schedule.profile import Profile

if TYPE_CHECKING:
    from vllm.config import ModelConfig, ParallelConfig, SpeculativeConfig
    from vllm.engine.arg_utils import EngineArgs

WORKER = "vllm_specvlm.engine.worker_cpu.TreeCPUWorker"
GPU_WORKER = "vllm_specvlm.engine.worker_gpu.TreeGPUWorker"
GPU_BACKEND = "FLASH_ATTN"
"""vLLM's attention backend that ours is built upon."""

UNPROVEN = (
    "Method 'specvlm' on NVIDIA GPUs was compiled, emulated, sanitised and statically checked, but not yet run on a "
    "GPU by the project; `specvlm selftest` checks it on yours and writes a report that you can send."
)

logger = logger_for(__name__)


def install() -> None:
    """Make `EngineArgs` understand method `specvlm`; every other method takes the stock way untouched.

    `EngineArgs.create_speculative_config` is where the user's dictionary becomes configuration, for `LLM(...)`, the
    server and Ray alike, and general plugins are loaded by then.
    """
    from vllm.engine.arg_utils import EngineArgs

    stock = EngineArgs.create_speculative_config
    if getattr(stock, "_specvlm", False):
        return

    @functools.wraps(stock)
    def create_speculative_config(
        self: EngineArgs, target_model_config: ModelConfig, target_parallel_config: ParallelConfig
    ) -> SpeculativeConfig | None:
        if _asked_for(self):
            translate(self, target_model_config, target_parallel_config)
        return stock(self, target_model_config, target_parallel_config)

    create_speculative_config._specvlm = True  # type: ignore[attr-defined]
    EngineArgs.create_speculative_config = create_speculative_config  # type: ignore[method-assign]


def _asked_for(args: EngineArgs) -> bool:
    given = args.speculative_config
    return args.spec_method == METHOD or (isinstance(given, dict) and given.get("method") == METHOD)


def translate(args: EngineArgs, target: ModelConfig, parallel: ParallelConfig) -> None:
    """Replace the user's dictionary by what stock vLLM needs to run our worker and proposer; changes `args` in place.

    Raises:
        ValueError: an option is wrong, the draft does not fit the target, or the engine asks for something that
            speculation with trees does not support.
    """
    from vllm.platforms import current_platform

    options = SpecVLMOptions.parse(_given(args))
    refuse_unsupported(args, target, parallel)
    worker = WORKER
    if current_platform.is_cuda():
        worker = GPU_WORKER
        if args.attention_config.backend is None:
            args.attention_backend = GPU_BACKEND
        logger.warning_once(UNPROVEN)
    ops.load()
    if options.profile is not None:
        options = replace(options, profile=_checked_profile(options.profile))
    if options.model is not None:
        options = _with_checked_draft(options, target)
        if args.enable_lora and (head_config.is_head(str(options.model)) or exit_config.is_exit(str(options.model))):
            raise ValueError(
                f"Method 'specvlm' does not run LoRA adapters beside '{options.model}', which drafts with the target's "
                "own layers; draft with a VLM, or leave 'model' out."
            )
    args.spec_method = args.spec_model = args.spec_tokens = None
    args.speculative_config = {
        "method": "custom_class",
        "model": PROPOSER,
        "num_speculative_tokens": options.shape().nodes,
    }
    if not isinstance(args.additional_config, dict):
        raise ValueError("Method 'specvlm' needs --additional-config to be a JSON object, or left out.")
    # vLLM's compiled graphs are kept by this: one that shows hidden states of some layers must not serve other ones.
    shown = {"specvlm_feature_layers": _feature_layers(options)}
    args.additional_config = {**args.additional_config, METHOD: options.as_dict(), **shown}
    args.worker_cls = parallel.worker_cls = worker
    beside_others = parallel._api_process_count > 1 and parallel._api_process_rank >= 0
    exporter.export(target.served_model_name, beside_others=beside_others)


def _feature_layers(options: SpecVLMOptions) -> list[int]:
    """The target's layers that a feature head reads, besides what leaves the last one."""
    if options.model is None or not head_config.is_head(options.model):
        return []
    return list(head_config.read_config(options.model)[0].feature_layers)


def _given(args: EngineArgs) -> dict[str, Any]:
    """The user's dictionary with vLLM's short flags (--spec-model, --spec-tokens) folded in."""
    given = dict(args.speculative_config or {})
    for flag, key, value in (
        ("--spec-method", "method", args.spec_method),
        ("--spec-model", "model", args.spec_model),
        ("--spec-tokens", "num_speculative_tokens", args.spec_tokens),
    ):
        if value is None:
            continue
        if key in given:
            raise ValueError(f"{flag} and --speculative-config['{key}'] exclude each other; leave one out.")
        given[key] = value
    return given


def _checked_profile(given: str) -> str:
    """The profile's absolute path, as workers may run elsewhere; whether it fits is for them to say, who know more."""
    path = Path(given).expanduser().absolute()
    Profile.load(path)
    return str(path)


def _with_checked_draft(options: SpecVLMOptions, target: ModelConfig) -> SpecVLMOptions:
    from vllm_specvlm import zoo
    from vllm_specvlm.engine import compat_pair

    assert options.model is not None
    options = replace(options, model=zoo.resolve(options.model))
    assert options.model is not None
    found = compat_pair.problems(
        target, options.model, text_only_draft=options.text_only_draft, token_map=options.token_map
    )
    if found:
        raise ValueError(" ".join(found))
    return options


def refuse_unsupported(args: EngineArgs, target: ModelConfig, parallel: ParallelConfig) -> None:
    """Refuse, in one sentence, what trees are not exact with or not tested for.

    Raises:
        ValueError: the first thing found.
    """
    from vllm.platforms import current_platform

    text = target.hf_text_config
    window = target.get_sliding_window()
    cap = getattr(text, "attn_logit_softcapping", None)
    other_layers = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
    pictures = target.multimodal_config
    chosen = args.attention_backend or args.attention_config.backend
    backend = str(getattr(chosen, "name", chosen)).upper()
    checks: list[tuple[bool, str, str]] = [
        (
            not (current_platform.is_cpu() or current_platform.is_cuda()),
            f"on device '{current_platform.device_name}'",
            "use an NVIDIA GPU, or vLLM's CPU backend",
        ),
        (
            args.worker_cls not in ("auto", WORKER, GPU_WORKER),
            f"with worker class '{args.worker_cls}'",
            "leave --worker-cls out",
        ),
        (
            current_platform.is_cuda() and backend not in ("NONE", "AUTO", GPU_BACKEND),
            f"on GPUs with attention backend '{backend}'",
            f"set --attention-backend {GPU_BACKEND}, or leave it out",
        ),
        (
            current_platform.is_cuda() and target.dtype not in (torch.float16, torch.bfloat16),
            f"on GPUs in {str(target.dtype).removeprefix('torch.')}, which FlashAttention has not",
            "set --dtype bfloat16 or float16",
        ),
        (
            parallel.pipeline_parallel_size > 1,
            f"with pipeline parallelism {parallel.pipeline_parallel_size}",
            "use tensor parallelism instead",
        ),
        (
            parallel.data_parallel_size > 1,
            f"with data parallelism {parallel.data_parallel_size}",
            "start separate servers behind a load balancer",
        ),
        (
            parallel.decode_context_parallel_size > 1,
            f"with decode context parallelism {parallel.decode_context_parallel_size}",
            "set it to 1",
        ),
        (
            parallel.prefill_context_parallel_size > 1,
            f"with prefill context parallelism {parallel.prefill_context_parallel_size}",
            "set it to 1",
        ),
        (parallel.use_ubatching, "with dual-batch overlap", "leave --enable-dbo out"),
        (args.async_scheduling is True, "with asynchronous scheduling", "leave --async-scheduling out"),
        (
            args.kv_cache_dtype not in ("auto", "bfloat16", "float16", "float32"),
            f"with KV cache type '{args.kv_cache_dtype}'",
            "set --kv-cache-dtype auto",
        ),
        (
            args.kv_transfer_config is not None or bool(args.kv_offloading_size),
            "with a KV connector",
            "leave --kv-transfer-config and --kv-offloading-size out",
        ),
        (args.ec_transfer_config is not None, "with an encoder cache connector", "leave --ec-transfer-config out"),
        (
            pictures is not None and bool(pictures.video_pruning_rate),
            "with video pruning",
            "leave --video-pruning-rate out",
        ),
        (args.watermark_config is not None, "with watermarks", "leave --watermark-config out"),
        (target.runner_type != "generate", f"with runner '{target.runner_type}'", "serve the model for generation"),
        (target.skip_tokenizer_init, "without a tokenizer", "leave --skip-tokenizer-init out"),
        (
            target.is_mm_prefix_lm,
            f"for '{target.model}', whose picture tokens see each other, which vLLM's CPU attention leaves out",
            "serve it without speculation",
        ),
        (bool(window), f"for a model with a sliding window of {window}", "serve it without speculation"),
        (
            bool(other_layers),
            f"for '{target.model}', which has layers of type {sorted(other_layers)}",
            "serve it without speculation",
        ),
        (bool(cap), f"for a model that soft-caps its attention at {cap}", "serve it without speculation"),
        (target.is_encoder_decoder, "for an encoder-decoder model", "serve it without speculation"),
    ]
    for refused, what, instead in checks:
        if refused:
            raise ValueError(f"Method 'specvlm' does not run {what}; {instead}.")
