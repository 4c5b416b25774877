"""What is not supported is refused when the engine is configured, in one sentence that says what to do."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from vllm import LLM, EngineArgs

from tests.exactness.engines import target_of
from tests.tiny.checkpoints import build
from tests.tiny.exits import build_exit
from tests.tiny.heads import build_head
from vllm_specvlm.compress.compressor import CompressorConfig
from vllm_specvlm.engine import plugin


@pytest.fixture(autouse=True)
def _plugin() -> None:
    plugin.register()


def configure(speculative: dict[str, Any], **options: Any) -> Any:
    model = options.pop("model", str(target_of("llava")))
    arguments = {"model": model, "dtype": "float32", "enforce_eager": True, "max_model_len": 512, **options}
    return EngineArgs(**arguments, speculative_config={"method": "specvlm", **speculative}).create_engine_config()


@pytest.mark.parametrize(
    ("speculative", "says"),
    [
        ({"num_speculative_tokens": 0}, "'num_speculative_tokens' is 0; write a whole number from 1 to 127"),
        ({"num_speculative_tokens": 128}, "'num_speculative_tokens' is 128"),
        ({"num_speculative_tokens": -1}, "'num_speculative_tokens' is -1"),
        ({"num_speculative_tokens": "8"}, "'num_speculative_tokens' is '8'"),
        ({"num_speculative_tokens": True}, "'num_speculative_tokens' is True"),
        ({"nodes": 8}, "Unknown speculative-config option 'nodes'"),
        ({"tree": "bush"}, "Option 'tree' is 'bush'"),
        ({"paths": [[0], [1, 0]]}, "Tree path (1, 0) does not fit"),
        ({"paths": 3}, "Option 'paths' is 3"),
        ({"paths": []}, "Option 'paths' is []"),
        ({"paths": [[0.7]]}, "Option 'paths' is [[0.7]]"),
        ({"paths": "0"}, "Option 'paths' is '0'"),
        ({"paths": [[0], [1]], "num_speculative_tokens": 9}, "leave 'num_speculative_tokens' out"),
        ({"with_lookup": True}, "'with_lookup' merges lookup into a draft's trees; name a 'model'"),
        ({"with_lookup": 1, "model": "x"}, "'with_lookup' is 1; write true or false"),
        ({"lookup_shared_tokens": 1}, "'lookup_shared_tokens' is 1, too few"),
        ({"lookup_shared_tokens": 1 << 40}, "write a whole number from 0 to"),
        ({"paths": [[0]], "tree": "chain"}, "exclude each other"),
        ({"width": 0}, "'width' is 0"),
        ({"text_only_draft": "yes"}, "Option 'text_only_draft' is 'yes'; write true or false"),
        ({"model": ""}, "Option 'model' is ''"),
        ({"model": "/no/such/draft"}, "There is no draft at '/no/such/draft'"),
        ({"model": "no-such/draft"}, "The draft 'no-such/draft' cannot be read"),
        ({"lookup_min_match": 9, "lookup_max_match": 3}, "'lookup_min_match' is 9, above"),
    ],
)
def test_options(speculative: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        configure(speculative)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline parallelism 2"),
        ({"data_parallel_size": 2}, "data parallelism 2"),
        ({"tensor_parallel_size": 2, "decode_context_parallel_size": 2}, "decode context parallelism 2"),
        ({"async_scheduling": True}, "asynchronous scheduling"),
        ({"enable_dbo": True}, "dual-batch overlap"),
        ({"kv_cache_dtype": "fp8"}, "KV cache type 'fp8'"),
        ({"kv_offloading_size": 1.0}, "KV connector"),
        ({"runner": "pooling"}, "runner 'pooling'"),
        ({"skip_tokenizer_init": True}, "without a tokenizer"),
        ({"video_pruning_rate": 0.5}, "video pruning"),
        ({"watermark_config": {"secret_key": "1"}}, "watermarks"),
        ({"prefill_context_parallel_size": 2}, "prefill context parallelism 2"),
        ({"worker_cls": "some.other.Worker"}, "worker class 'some.other.Worker'"),
    ],
)
def test_engine_features(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="Method 'specvlm' does not run") as caught:
        configure({}, **options)
    assert says in str(caught.value)


@pytest.mark.parametrize("kv_cache_dtype", ["fp8", "fp8_e4m3", "fp8_e5m2"])
def test_fp8_caches_are_refused(kv_cache_dtype: str) -> None:
    with pytest.raises(ValueError, match=f"KV cache type '{kv_cache_dtype}'; set --kv-cache-dtype auto"):
        configure({}, kv_cache_dtype=kv_cache_dtype)


def test_adapters_beside_drafters_that_share_layers() -> None:
    for shares in (build_head("llava", CompressorConfig()), build_exit("llava")):
        with pytest.raises(ValueError, match=r"does not run LoRA adapters beside .* the target's own layers"):
            configure({"model": str(shares)}, enable_lora=True)
        configure({"model": str(shares)})
    configure({}, enable_lora=True, max_num_seqs=16)


@pytest.mark.parametrize(
    ("override", "says"),
    [({"sliding_window": 64}, "sliding window of 64"), ({"attn_logit_softcapping": 50.0}, "soft-caps its attention")],
)
def test_model_features(override: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="Method 'specvlm' does not run") as caught:
        configure({}, hf_overrides={"text_config": override})
    assert says in str(caught.value)


def test_picture_tokens_that_see_each_other() -> None:
    """Said of Gemma 3 before its sliding windows, since without them it could not run either."""
    with pytest.raises(ValueError, match=r"for '.*gemma3.*', whose picture tokens see each other"):
        configure({}, model=str(build("gemma3")))
    with pytest.raises(ValueError, match="sliding"):
        configure({}, model=str(build("gemma3")), hf_overrides={"is_mm_prefix_lm": False})


def test_draft_with_another_tokenizer() -> None:
    with pytest.raises(ValueError, match=r"another tokenizer than the target: \d+ tokens differ"):
        configure({"model": str(build("llava", seed=3, tokenizer="other"))})


def test_text_only_draft_needs_the_option() -> None:
    draft = str(build("llava", text_only=True))
    with pytest.raises(ValueError, match="cannot see pictures"):
        configure({"model": draft})
    configure({"model": draft, "text_only_draft": True})
    with pytest.raises(ValueError, match="is a VLM; leave 'text_only_draft' out"):
        configure({"model": str(target_of("llava")), "text_only_draft": True})


def test_draft_of_another_family() -> None:
    with pytest.raises(ValueError, match=r"has another tokenizer than the target: \d+ tokens differ"):
        configure({"model": str(build("qwen2_5_vl"))})


def test_engines_without_pictures() -> None:
    """A pair is not refused for pictures that nobody may send."""
    draft = str(build("llava", seed=3))
    configure({"model": draft}, limit_mm_per_prompt={"image": 0})


def test_drafts_that_see_videos_otherwise(tmp_path: Path) -> None:
    target, draft = str(target_of("qwen2_5_vl")), tmp_path / "draft"
    shutil.copytree(build("qwen2_5_vl", seed=3), draft)
    settings = draft / "processor_config.json"
    parsed = json.loads(settings.read_text())
    parsed["video_processor"]["size"] = {"shortest_edge": 3136, "longest_edge": 3136}
    settings.write_text(json.dumps(parsed))
    with pytest.raises(ValueError, match=r"gives a video \d+ visual tokens and the target \d+"):
        configure({"model": str(draft)}, model=target)
    configure({"model": str(draft)}, model=target, limit_mm_per_prompt={"video": 0})


def test_drafts_that_see_no_videos() -> None:
    options = {"model": str(target_of("llava_onevision")), "limit_mm_per_prompt": {"image": 0}}
    draft = {"model": str(build("llava_next", seed=3)), "token_map": True}
    with pytest.raises(ValueError, match="takes no videos and the target does"):
        configure(draft, **options)


def test_padded_vocabulary_is_accepted() -> None:
    configure({"model": str(build("llava", seed=3, vocab_padding=64))})


def test_translation() -> None:
    config = configure({"num_speculative_tokens": 16})
    assert config.speculative_config.method == "custom_class"
    assert config.speculative_config.num_speculative_tokens == 16
    assert config.parallel_config.worker_cls == "vllm_specvlm.engine.worker_cpu.TreeCPUWorker"
    assert config.additional_config["specvlm"]["model"] is None


def test_short_flags() -> None:
    arguments = {"model": str(target_of("llava")), "dtype": "float32", "max_model_len": 512}
    config = EngineArgs(**arguments, spec_method="specvlm", spec_tokens=5).create_engine_config()
    assert config.speculative_config.num_speculative_tokens == 5


def test_other_methods_are_untouched() -> None:
    """With the plugin installed, an engine that does not ask for it is configured as without."""
    from tests.exactness import stock_configuration as stock

    ours = stock.configurations(with_plugin=True)
    assert ours == stock.configurations(with_plugin=False)
    assert "vllm_specvlm" not in repr(ours)


def test_engine_without_the_method_has_stock_classes() -> None:
    llm = LLM(
        model=str(target_of("llava")),
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        kv_cache_memory_bytes=32 << 20,
        block_size=32,
    )
    core = llm.llm_engine.engine_core.engine_core
    worker, grammars = core.model_executor.driver_worker.worker, core.structured_output_manager
    layers = worker.vllm_config.compilation_config.static_forward_context.values()
    classes = {type(x).__module__ for x in (worker, worker.model_runner, grammars, *(layer.impl for layer in layers))}
    assert classes and not any(name.startswith("vllm_specvlm") for name in classes)
    from tests.exactness import engines

    engines._kept["stock"] = llm
