"""The ledger: the vLLM methods we override or wrap and the functions we call, and why.

Fields of vLLM's own objects that we read (the runner's batch and buffers, sampling parameters) are not listed one by
one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Symbol:
    """One entry: where it is, how we use it, and the parameters we rely on."""

    where: str
    """`module:attribute.path`."""
    use: str
    """`overridden`, `wrapped` or `called`."""
    why: str
    parameters: tuple[str, ...] = ()
    """Leading parameters (after self) that must have these names, in this order."""
    gone_when: str = ""
    """What would make the entry unnecessary."""


_RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner."
_WORKER = "vllm.v1.worker.gpu_worker:Worker."
_FLASH = "vllm.v1.attention.backends.flash_attn:"
_GRAMMARS = "vllm.v1.structured_output:StructuredOutputManager."
_GRAMMAR = "vllm.v1.structured_output.backend_types:StructuredOutputGrammar."
_THOUGHTS = "vllm.v1.sample.thinking_budget_state:ThinkingBudgetStateHolder."
_GRAPHS = "vllm.compilation.breakable_cudagraph:"
_WRAPPED = ("runnable", "vllm_config", "runtime_mode")
_REGISTRY = "a proposer registry in vLLM that may own verification"

LEDGER: tuple[Symbol, ...] = (
    Symbol(
        "vllm.engine.arg_utils:EngineArgs.create_speculative_config",
        "wrapped",
        "method 'specvlm' in the user's dictionary becomes proposer class, worker class and our options",
        ("target_model_config", "target_parallel_config"),
        _REGISTRY,
    ),
    Symbol("vllm.v1.worker.cpu_worker:CPUWorker.init_device", "overridden", "puts our model runner into the worker"),
    Symbol(_WORKER + "init_device", "overridden", "checks the configuration first"),
    Symbol(_WORKER + "_make_model_runner", "overridden", "puts our model runner into the worker of GPUs"),
    Symbol(_WORKER + "compile_or_warm_up_model", "overridden", "passes are timed after graphs were captured"),
    Symbol(_RUNNER + "load_model", "overridden", "tree attention in the layers"),
    Symbol("vllm.v1.worker.cpu_model_runner:CPUModelRunner.load_model", "relied on", "takes the dummy flag by place"),
    Symbol(_RUNNER + "get_model", "called", "the target without the wrapper that replays graphs"),
    Symbol(
        _RUNNER + "profile_run",
        "overridden",
        "the draft and the memory of trees are counted before the KV cache gets the rest",
    ),
    Symbol(_RUNNER + "_get_mm_dummy_batch", "called", "the largest pictures, for measuring", ("modality",)),
    Symbol(
        _RUNNER + "_warmup_and_capture",
        "overridden",
        "captures the draft's graphs with the target's",
        ("desc", "cudagraph_runtime_mode"),
    ),
    Symbol(
        _RUNNER + "profile_cudagraph_memory",
        "overridden",
        "graphs captured for measuring are gone afterwards, the draft's too",
    ),
    Symbol(_GRAPHS + "BreakableCUDAGraphWrapper", "called", "graphs of a head's and an exit's passes", _WRAPPED),
    Symbol(_GRAPHS + "BreakableCUDAGraphCapture.current", "called", "whether a pass is being captured"),
    Symbol(_GRAPHS + "BreakableCUDAGraphCapture.add_eager", "called", "attention between two graphs", ("fn",)),
    Symbol("vllm.utils.torch_utils:weak_ref_tensors", "called", "graphs share memory", ("tensors",)),
    Symbol("vllm.platforms.interface:Platform.support_static_graph_mode", "called", "whether there are graphs"),
    Symbol(
        _RUNNER + "_determine_batch_execution_and_padding",
        "overridden",
        "a step with trees takes no FULL graph",
        ("num_tokens", "num_reqs"),
        "tree attention in vLLM's graphs",
    ),
    Symbol(
        "vllm.v1.cudagraph_dispatcher:CudagraphDispatcher.dispatch",
        "overridden",
        "a step with trees takes no FULL graph",
        ("num_tokens", "uniform_decode", "has_lora", "num_active_loras", "valid_modes", "invalid_modes"),
        "tree attention in vLLM's graphs",
    ),
    Symbol(
        "vllm.v1.cudagraph_dispatcher:CudagraphDispatcher.initialize_cudagraph_keys",
        "relied on",
        "FULL graphs are those of one token a request",
        ("cudagraph_mode", "uniform_decode_query_len"),
    ),
    Symbol("vllm.config:CUDAGraphMode", "called", "which graphs a pass runs in"),
    Symbol("vllm.v1.worker.cpu_model_runner:CPUModelRunner.warming_up_model", "overridden", "compiles the draft too"),
    Symbol(
        _RUNNER + "initialize_kv_cache",
        "overridden",
        "validity marks for the draft's part of the cache",
        ("kv_cache_config", "is_profiling"),
    ),
    Symbol(_RUNNER + "execute_model", "overridden", "decodes the trees in the draft lists", ("scheduler_output",)),
    Symbol(
        _RUNNER + "_prepare_inputs",
        "overridden",
        "positions root + depth, tree rows out of the paged cache",
        ("scheduler_output", "num_scheduled_tokens"),
        "tree positions in vLLM",
    ),
    Symbol(_RUNNER + "_build_attention_metadata", "overridden", "hands the tree to the attention layers"),
    Symbol(_RUNNER + "_sample", "overridden", "tree acceptance and commit", ("logits", "spec_decode_metadata")),
    Symbol(
        _RUNNER + "_input_fits_in_drafter",
        "overridden",
        "one request near max_model_len must not stop drafting for all",
        ("common_attn_metadata",),
    ),
    Symbol(
        _RUNNER + "propose_draft_token_ids",
        "overridden",
        "drafting is put off until the step's output is handed out; a feature head's features come this way",
        (
            "scheduler_output",
            "sampled_token_ids",
            "sampling_metadata",
            "hidden_states",
            "sample_hidden_states",
            "aux_hidden_states",
        ),
        _REGISTRY,
    ),
    Symbol(_RUNNER + "take_draft_token_ids", "overridden", "drafts the next step's trees"),
    Symbol("vllm.v1.engine.core:EngineCore.post_step", "relied on", "asks for drafts after the outputs are queued"),
    Symbol(
        "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl.forward",
        "overridden",
        "rows of a tree go through our op",
        ("layer", "query", "key", "value", "kv_cache", "attn_metadata", "output"),
        "a tree mask in vLLM's CPU attention",
    ),
    Symbol(
        "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl.do_kv_cache_update",
        "called",
        "commits accepted rows without knowing the cache layout",
        ("layer", "key", "value", "kv_cache", "slot_mapping"),
    ),
    Symbol(
        _FLASH + "FlashAttentionImpl.forward",
        "overridden",
        "rows of a tree go through our op",
        ("layer", "query", "key", "value", "kv_cache", "attn_metadata", "output"),
        "a tree mask in FlashAttention",
    ),
    Symbol(
        _FLASH + "FlashAttentionImpl.do_kv_cache_update",
        "called",
        "commits accepted rows where our kernel does not",
        ("layer", "key", "value", "kv_cache", "slot_mapping"),
    ),
    Symbol(
        _FLASH + "canonicalize_singleton_dim_strides", "called", "FlashAttention over the prefix, where no kernel runs"
    ),
    Symbol(
        "vllm.vllm_flash_attn.flash_attn_interface:flash_attn_varlen_func",
        "called",
        "FlashAttention over the prefix, where no kernel runs",
        ("q", "k", "v", "max_seqlen_q", "cu_seqlens_q", "max_seqlen_k", "cu_seqlens_k", "seqused_k"),
    ),
    Symbol("vllm.v1.attention.backends.fa_utils:get_flash_attn_version", "relied on", "on GPUs, which version runs"),
    Symbol(
        "vllm.model_executor.layers.attention_layer_base:AttentionLayerBase", "called", "what attends among the layers"
    ),
    Symbol("vllm.model_executor.layers.attention:Attention", "called", "finds the layers that attend"),
    Symbol("vllm.model_executor.model_loader:get_model", "called", "loads the draft"),
    Symbol("vllm.compilation.backends:set_model_tag", "called", "keeps the draft's compiled graphs apart", ("tag",)),
    Symbol(
        "vllm.forward_context:set_forward_context",
        "called",
        "runs the draft",
        ("attn_metadata", "vllm_config", "num_tokens"),
    ),
    Symbol(
        "vllm.v1.worker.cpu_worker:CPUWorker.compile_or_warm_up_model",
        "overridden",
        "the last call before requests: passes are timed here",
    ),
    Symbol(
        "vllm.utils.torch_utils:set_random_seed", "called", "timing passes must not change what is drawn", ("seed",)
    ),
    Symbol(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._dummy_run",
        "called",
        "times passes of the target before the first request, on GPUs with attention",
        (
            "num_tokens",
            "cudagraph_runtime_mode",
            "force_attention",
            "uniform_decode",
            "allow_microbatching",
            "skip_eplb",
            "is_profile",
            "create_mixed_batch",
            "remove_lora",
            "is_graph_capturing",
            "num_active_loras",
            "profile_seq_lens",
        ),
    ),
    Symbol(
        "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin._set_active_loras",
        "called",
        "times passes of a target with LoRA adapters, without any",
        ("prompt_lora_mapping", "token_lora_mapping", "lora_requests"),
    ),
    Symbol(
        _RUNNER + "_cache_encoder_output",
        "relied on",
        "keeps visual tokens in `encoder_cache`, where a feature head finds them",
        ("mm_hash", "output"),
    ),
    Symbol("vllm.model_executor.layers.linear:ReplicatedLinear", "called", "a feature head's matrices"),
    Symbol("vllm.config:set_current_vllm_config", "called", "a feature head's attention layer reads the configuration"),
    Symbol(
        "vllm.utils.torch_utils:set_default_torch_dtype", "called", "its layer is made as vLLM makes others", ("dtype",)
    ),
    Symbol("vllm.model_executor.models.interfaces:supports_eagle3", "called", "whether a target shows deeper layers"),
    Symbol(
        "vllm.model_executor.models.interfaces:SupportsEagle3.set_aux_hidden_state_layers",
        "called",
        "asks for the layers that a feature head reads",
        ("layers",),
    ),
    Symbol(
        "vllm.model_executor.models.interfaces:SupportsMultiModal.embed_input_ids",
        "called",
        "a feature head takes the target's embeddings",
        ("input_ids",),
    ),
    Symbol("vllm.config.utils:replace", "called", "the draft's view of the configuration"),
    Symbol("vllm.config:ModelConfig", "called", "the draft's configuration"),
    Symbol("vllm.config:ModelConfig.uses_mrope", "called", "which positions the draft takes"),
    Symbol(
        "vllm.multimodal.cache.base:MultiModalCache.get_item_size", "called", "bounds the pictures kept for the draft"
    ),
    Symbol("vllm.multimodal.utils:group_and_batch_mm_kwargs", "called", "batches pictures for the draft's tower"),
    Symbol("vllm.multimodal:MULTIMODAL_REGISTRY", "called", "compares image processing of draft and target"),
    Symbol("vllm.tokenizers:cached_tokenizer_from_config", "called", "compares tokenizers of draft and target"),
    Symbol(
        "vllm.v1.sample.ops.topk_topp_sampler:apply_top_k_top_p",
        "called",
        "the processed distribution of a sampled row",
        ("logits", "k", "p"),
    ),
    Symbol(
        "vllm.v1.sample.sampler:Sampler.greedy_sample",
        "called",
        "breaks exact ties as plain decoding does",
        ("logits",),
    ),
    Symbol(
        "vllm.v1.sample.sampler:Sampler.apply_logits_processors",
        "called",
        "penalties, bad words and allowed tokens of a tree's rows",
        ("logits", "sampling_metadata", "predict_bonus_token"),
    ),
    Symbol(
        _THOUGHTS + "__init__",
        "called",
        "budgets of thoughts along a tree's paths",
        ("reasoning_config", "max_num_seqs", "num_spec_tokens", "device", "is_pin_memory"),
        "budgets that vLLM keeps for trees",
    ),
    Symbol(_THOUGHTS + "sync_batch", "called", "how thoughts stand behind a prompt", ("batch_update",)),
    Symbol(
        _THOUGHTS + "update_state",
        "overridden",
        "the states of a tree's rows are told token by token, before the sampler asks",
        ("output_token_ids", "spec_token_ids"),
    ),
    Symbol("vllm.v1.sample.sampler:Sampler.compute_logprobs", "called", "log-probs of a tree's rows", ("logits",)),
    Symbol(
        "vllm.v1.sample.sampler:Sampler.gather_logprobs",
        "called",
        "log-probs of emitted tokens",
        ("logprobs", "num_logprobs", "token_ids"),
    ),
    Symbol(
        _GRAMMARS + "__init__",
        "wrapped",
        "the manager of a 'specvlm' engine understands trees; the engine core lets nobody choose its class",
        ("vllm_config",),
    ),
    Symbol(
        _GRAMMARS + "grammar_bitmask",
        "overridden",
        "every node of a tree gets the mask of its path, which vLLM's own method gives for it",
        ("requests", "structured_output_request_ids", "scheduled_spec_decode_tokens"),
        "trees in vLLM's scheduler",
    ),
    Symbol(
        _GRAMMARS + "validate_tokens",
        "overridden",
        "cuts drafted trees where the grammar does, and adds what it dictates",
        ("request", "spec_tokens"),
        "trees in vLLM's scheduler",
    ),
    Symbol(
        _GRAMMARS + "accept_tokens",
        "overridden",
        "an accepted path arrives token by token, as in plain decoding",
        ("request", "new_token_ids"),
    ),
    Symbol(
        _GRAMMARS + "_get_constraint_bounds",
        "called",
        "whether a token ends a reasoning model's thoughts",
        ("request", "spec_tokens", "spec_tokens_committed"),
    ),
    Symbol(_GRAMMAR + "validate_tokens", "called", "whether a node's token may stand where it does", ("tokens",)),
    Symbol(_GRAMMAR + "accept_tokens", "called", "goes down to a node", ("request_id", "tokens")),
    Symbol(_GRAMMAR + "rollback", "called", "goes up again", ("num_tokens",)),
    Symbol(_GRAMMAR + "is_terminated", "called", "what follows a grammar's end is free"),
    Symbol(_GRAMMAR + "fill_bitmask", "called", "whether a grammar leaves a choice", ("bitmask",)),
    Symbol(
        "vllm.v1.structured_output.backend_types:StructuredOutputBackend.allocate_token_bitmask",
        "called",
        "a mask to ask grammars with",
        ("max_num_seqs",),
    ),
    Symbol(
        "vllm.v1.structured_output.request:StructuredOutputRequest",
        "called",
        "a request whose thoughts have ended on a path",
    ),
    Symbol(
        "vllm.v1.core.sched.scheduler:Scheduler.update_draft_token_ids",
        "relied on",
        "asks which drafts a grammar allows",
        ("draft_token_ids",),
    ),
    Symbol(
        "vllm.v1.structured_output.utils:apply_grammar_bitmask",
        "relied on",
        "masks the logits before `_sample`; requests' rows follow each other, or stand in equal blocks (0.33)",
        ("scheduler_output", "grammar_output", "input_batch", "logits"),
    ),
    Symbol("vllm.v1.sample.metadata:SamplingMetadata", "called", "a tree's rows as requests of their own"),
    Symbol("vllm.v1.sample.logits_processor:LogitsProcessors", "called", "rows bring their own"),
    Symbol(
        "vllm.v1.sample.logits_processor.builtin:MinTokensLogitsProcessor.update_state",
        "called",
        "a row's minimum length, by the length of its own history",
        ("batch_update",),
    ),
    Symbol(
        "vllm.v1.sample.logits_processor.builtin:LogitBiasLogitsProcessor.update_state",
        "called",
        "a row's biases",
        ("batch_update",),
    ),
    Symbol(
        "vllm.v1.sample.logits_processor.builtin:MinPLogitsProcessor.apply",
        "called",
        "a sampled row's least probability, from `min_p` [requests, 1]",
        ("logits",),
    ),
    Symbol("vllm.v1.sample.logits_processor.interface:BatchUpdate", "called", "rows as requests of a batch"),
    Symbol(
        "vllm.v1.sample.logits_processor:AdapterLogitsProcessor",
        "called",
        "its `req_info` says which requests a custom processor deals with",
    ),
    Symbol("vllm.v1.sample.logits_processor:BUILTIN_LOGITS_PROCESSORS", "called", "which processors are vLLM's own"),
    Symbol(
        "vllm.v1.worker.gpu_model_runner:build_logitsprocs",
        "wrapped",
        "our runner gets the processors of an engine without speculation",
        ("vllm_config",),
        "processors on trees or chains in vLLM",
    ),
    Symbol(
        "vllm.sampling_params:SamplingParams._validate_spec_decode",
        "wrapped",
        "vLLM refuses min_p and logit_bias under any speculation; on our trees they are exact",
        ("speculative_config",),
        "min_p and logit_bias under speculation in vLLM",
    ),
    Symbol(
        "vllm.multimodal.cache.factories:_get_cache_type",
        "wrapped",
        "processed pictures stay in the front end, so that the engine never lacks one",
        ("vllm_config",),
        "a picture counting as known to vLLM's engine when it has arrived there",
    ),
    Symbol("vllm.multimodal.cache:MultiModalProcessorOnlyCache", "relied on", "keeps them"),
    Symbol("vllm.model_executor.models.interfaces:supports_multimodal", "called", "whether the draft can see"),
    Symbol("vllm.multimodal.inputs:MultiModalFeatureSpec", "called", "a request's pictures"),
    Symbol("vllm.v1.attention.backend:AttentionType", "called", "refuses layers that are no decoders"),
    Symbol("vllm.v1.core.sched.output:SchedulerOutput", "called", "which requests and blocks a step brings"),
    Symbol(
        "vllm.v1.metrics.prometheus:get_prometheus_registry", "relied on", "`/metrics` shows what is in this registry"
    ),
    Symbol("vllm.distributed.parallel_state:get_tp_group", "called", "ranks agree that the drafter works"),
    Symbol("vllm.v1.outputs:SamplerOutput", "called", "what `_sample` returns"),
    Symbol("vllm.v1.outputs:LogprobsTensors", "called", "log-probs beside trees of other requests"),
    Symbol("vllm.v1.outputs:DraftTokenIds", "called", "what `take_draft_token_ids` returns"),
    Symbol(
        "vllm.v1.spec_decode.custom_class_proposer:create_custom_proposer",
        "relied on",
        "builds our proposer from its class path",
        ("vllm_config",),
        _REGISTRY,
    ),
)
