"""Every place in vLLM that the plugin, or the backend on it, touches: imports, calls, reads, sets and overrides.

tests/model_runtime/test_vllm_pins.py checks each line against the vLLM that is installed, and that none is missing.
"""

from __future__ import annotations

from .pins import Pin

_CONTEXT = "vllm.forward_context"
_CONFIG = "vllm.config"
_PROCESSING = "vllm.multimodal.processing"
_INTERFACES = "vllm.model_executor.models.interfaces"
_ATTENTION = "vllm.v1.attention"
_BACKENDS = "vllm.v1.attention.backends"
_BUILD = ("common_prefix_len", "common_attn_metadata", "fast_build")
_UPDATE = ("layer", "key", "value", "kv_cache", "slot_mapping")
_FORWARD = (
    *("layer", "query", "key", "value", "kv_cache", "attn_metadata"),
    *("output", "output_scale", "output_block_scale"),
)

_REGISTRATION = (
    Pin("vllm:__version__", "registration"),
    Pin("vllm:ModelRegistry", "registration"),
    Pin("vllm:ModelRegistry.get_supported_archs", "registration"),
    Pin("vllm:ModelRegistry.register_model", "registration", takes=("model_arch", "model_cls")),
    Pin("vllm.model_executor.models.config:MODELS_CONFIG_MAP.__setitem__", "registration"),
    Pin("vllm.transformers_utils.config:_CONFIG_REGISTRY.__setitem__", "registration"),
    Pin("vllm.tokenizers.registry:TokenizerRegistry.tokenizers.__setitem__", "registration"),
    Pin("vllm.renderers.registry:RENDERER_REGISTRY.renderers.__setitem__", "registration"),
    # A renderer is found by what this says of a model: its config's type, for one that is registered.
    Pin("vllm.renderers.registry:RENDERER_REGISTRY.load_renderer_cls", "registration", takes=("renderer_mode",)),
)

_CONFIGURATION = (
    Pin(
        f"{_CONFIG}:VllmConfig",
        has=(
            *("model_config", "cache_config", "scheduler_config", "parallel_config", "load_config"),
            *("speculative_config", "additional_config", "kv_transfer_config", "compilation_config"),
        ),
    ),
    Pin(
        f"{_CONFIG}:ModelConfig",
        has=(
            *("model", "revision", "dtype", "quantization", "max_model_len", "uses_mrope"),
            *("hf_overrides", "model_weights"),
        ),
    ),
    Pin(
        f"{_CONFIG}:CacheConfig",
        has=("cache_dtype", "block_size", "user_specified_block_size", "kv_offloading_size"),
    ),
    Pin(
        f"{_CONFIG}:SchedulerConfig",
        has=("encoder_cache_size", "max_num_encoder_input_tokens", "max_num_batched_tokens"),
    ),
    Pin(
        f"{_CONFIG}:ParallelConfig",
        has=(
            *("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size"),
            *("decode_context_parallel_size", "worker_cls", "worker_extension_cls"),
        ),
    ),
    Pin(f"{_CONFIG}:LoadConfig", has=("load_format",)),
    Pin(f"{_CONFIG}:CompilationConfig", has=("cudagraph_mode",)),
    Pin(f"{_CONFIG}:CUDAGraphMode", has=("NONE", "FULL")),
    Pin("vllm:envs", has=("VLLM_USE_BREAKABLE_CUDAGRAPH",)),
    Pin("vllm.transformers_utils.runai_utils:is_runai_obj_uri", takes=("model_or_path",)),
    Pin("vllm.model_executor.models.config:VerifyAndUpdateConfig"),
    Pin(
        "vllm.model_executor.models.config:VerifyAndUpdateConfig.verify_and_update_model_config",
        takes=("model_config",),
    ),
    Pin("vllm.model_executor.models.config:VerifyAndUpdateConfig.verify_and_update_config", takes=("vllm_config",)),
)

_DOCUMENTS = (
    Pin("vllm.multimodal:MULTIMODAL_REGISTRY"),
    Pin("vllm.multimodal:MULTIMODAL_REGISTRY.register_processor", takes=("processor", "info", "dummy_inputs")),
    Pin("vllm.multimodal.inputs:MultiModalFieldConfig"),
    Pin("vllm.multimodal.inputs:MultiModalFieldConfig.batched", takes=("modality", "keep_on_cpu")),
    Pin("vllm.multimodal.inputs:MultiModalKwargsItems.get"),
    Pin("vllm.multimodal.inputs:MultiModalFieldElem", has=("data",)),
    Pin("vllm.multimodal.inputs:MultiModalFeatureSpec", has=("mm_position",)),
    Pin("vllm.multimodal.inputs:PlaceholderRange", has=("length",)),
    Pin("vllm.multimodal.parse:MultiModalDataItems.__contains__"),
    Pin("vllm.multimodal.parse:MultiModalDataParser._get_subparsers", takes=()),
    Pin("vllm.multimodal.parse:ProcessorBatchItems", takes=("data", "modality"), has=("data",)),
    Pin("vllm.multimodal.parse:ProcessorBatchItems.get_all"),
    Pin("vllm.multimodal.parse:ProcessorBatchItems.get_item_for_hash", takes=("index",)),
    Pin(f"{_PROCESSING}:BaseProcessingInfo.get_hf_config"),
    Pin(f"{_PROCESSING}:BaseProcessingInfo.get_data_parser"),
    Pin(f"{_PROCESSING}:BaseProcessingInfo.get_supported_mm_limits"),
    Pin(f"{_PROCESSING}:BaseProcessingInfo.get_mm_max_tokens_per_item", takes=("seq_len", "mm_counts")),
    Pin(f"{_PROCESSING}:BaseDummyInputsBuilder", has=("info",)),
    Pin(f"{_PROCESSING}:BaseDummyInputsBuilder.get_dummy_text", takes=("mm_counts",)),
    Pin(f"{_PROCESSING}:BaseDummyInputsBuilder.get_dummy_mm_data", takes=("seq_len", "mm_counts", "mm_options")),
    Pin(f"{_PROCESSING}:BaseMultiModalProcessor", has=("info", "requires_tokenizer")),
    Pin(f"{_PROCESSING}:BaseMultiModalProcessor._apply_hf_processor_main", takes=("mm_items", "hf_kwargs")),
    Pin(f"{_PROCESSING}:BaseMultiModalProcessor._get_mm_fields_config", takes=("hf_inputs", "hf_processor_mm_kwargs")),
    Pin(
        f"{_PROCESSING}:BaseMultiModalProcessor._get_prompt_updates",
        takes=("mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs"),
    ),
    Pin(f"{_PROCESSING}:BaseMultiModalProcessor._postprocess_prompt", takes=("prompt",)),
    Pin(f"{_PROCESSING}:PromptIndexTargets.start"),
    Pin(f"{_PROCESSING}:PromptInsertion", takes=("modality", "target", "insertion")),
    Pin(f"{_PROCESSING}:PromptUpdate"),
)

_MODEL = (
    Pin(f"{_CONTEXT}:get_forward_context", takes=()),
    Pin(f"{_CONTEXT}:override_forward_context", takes=("forward_context",)),
    Pin(
        f"{_CONTEXT}:ForwardContext",
        has=("attn_metadata", "slot_mapping", "cudagraph_runtime_mode", "batch_descriptor", "is_padding"),
    ),
    Pin("vllm.sequence:IntermediateTensors"),
    Pin("vllm.compilation.decorators:support_torch_compile", takes=("dynamic_arg_dims",)),
    Pin(f"{_INTERFACES}:SupportsMultiModal", has=("supports_multimodal",)),
    Pin(f"{_INTERFACES}:SupportsMultiModal.get_placeholder_str", takes=("modality", "i")),
    Pin(f"{_INTERFACES}:SupportsMultiModal.get_language_model"),
    Pin(f"{_INTERFACES}:SupportsMultiModal.embed_multimodal", takes=("kwargs",)),
    Pin(
        f"{_INTERFACES}:SupportsMultiModal.embed_input_ids",
        takes=("input_ids", "multimodal_embeddings", "is_multimodal"),
    ),
    Pin(f"{_INTERFACES}:SupportsMRoPE", has=("supports_mrope",)),
    Pin(f"{_INTERFACES}:SupportsMRoPE.get_mrope_input_positions", takes=("input_tokens", "mm_features")),
    Pin(
        "vllm.model_executor.layers.attention:Attention",
        takes=("num_heads", "head_size", "scale", "num_kv_heads", "cache_config", "prefix", "attn_backend"),
        has=("impl", "kv_cache", "layer_name"),
    ),
    Pin("vllm.model_executor.layers.attention:Attention.forward", takes=("query", "key", "value")),
    Pin("vllm.platforms:current_platform", has=("is_cpu", "device_type")),
    Pin(f"{_ATTENTION}.selector:get_attn_backend", takes=("head_size", "dtype", "kv_cache_dtype")),
    Pin(
        f"{_ATTENTION}.backend:AttentionBackend",
        has=("get_builder_cls", "get_impl_cls", "get_name", "forward_includes_kv_cache_update"),
    ),
    Pin(
        f"{_ATTENTION}.backend:CommonAttentionMetadata",
        has=(
            *("query_start_loc", "query_start_loc_cpu", "seq_lens", "num_reqs", "num_actual_tokens", "max_query_len"),
            *("block_table_tensor", "slot_mapping", "positions", "is_prefilling", "seq_lens_cpu_upper_bound"),
            *("req_idx", "_num_computed_tokens_cache", "_token_to_req_indices_cache"),
        ),
    ),
)

_CPU = (
    Pin(f"{_BACKENDS}.cpu_attn:CPUAttentionBackend.get_impl_cls", "cpu"),
    Pin(f"{_BACKENDS}.cpu_attn:CPUAttentionBackend.get_builder_cls", "cpu"),
    Pin(f"{_BACKENDS}.cpu_attn:CPUAttentionBackend.get_supported_head_sizes", "cpu"),
    # Or a document's rows would have to run through the layers to be stored.
    Pin(f"{_BACKENDS}.cpu_attn:CPUAttentionBackend.forward_includes_kv_cache_update", "cpu", equals=(False,)),
    Pin(
        f"{_BACKENDS}.cpu_attn:CPUAttentionBackendImpl", "cpu", has=("num_heads", "num_kv_heads", "head_size", "scale")
    ),
    Pin(f"{_BACKENDS}.cpu_attn:CPUAttentionBackendImpl.forward", "cpu", takes=_FORWARD),
    Pin(f"{_BACKENDS}.cpu_attn:CPUAttentionBackendImpl.do_kv_cache_update", "cpu", takes=_UPDATE),
    Pin(f"{_BACKENDS}.cpu_attn:CPUAttentionMetadata", "cpu", has=("query_start_loc", "seq_lens", "block_table")),
    Pin(f"{_BACKENDS}.cpu_attn:CPUAttentionMetadataBuilder.build", "cpu", takes=_BUILD),
    Pin(f"{_BACKENDS}.cpu_attn:CPUAttentionMetadataBuilder._set_isa_to_layers", "cpu", has=("isa",)),
    Pin("vllm.v1.worker.cpu_worker:CPUWorker.initialize_from_config", "cpu", takes=("kv_cache_config",)),
    # What a seeded request that ends a step within its prompt is done to: its generator is set back.
    Pin(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._bookkeeping_sync",
        "cpu",
        has=("input_batch", "generators", "get", "set_offset", "get_offset"),
    ),
    Pin("vllm.v1.worker.gpu_input_batch:InputBatch", "cpu", has=("generators", "req_output_token_ids")),
    Pin("vllm:_custom_ops", "cpu"),
    Pin(
        "vllm._custom_ops:cpu_attn_reshape_and_cache",
        "cpu",
        takes=(
            *("key", "value", "key_cache", "value_cache", "slot_mapping", "isa"),
            *("k_scale", "v_scale", "kv_cache_dtype"),
        ),
    ),
)

_CUDA = (
    Pin(f"{_BACKENDS}.triton_attn:TritonAttentionBackend", "cuda", has=("get_builder_cls", "get_impl_cls")),
    Pin(f"{_BACKENDS}.triton_attn:TritonAttentionBackend.forward_includes_kv_cache_update", "cuda", equals=(False,)),
    Pin(f"{_BACKENDS}.triton_attn:TritonAttentionImpl.do_kv_cache_update", "cuda", takes=_UPDATE),
    Pin(
        f"{_BACKENDS}.triton_attn:TritonAttentionImpl.forward",
        "cuda",
        takes=_FORWARD,
        has=("rswa_prefix_lens", "rswa_window"),
    ),
    Pin(
        f"{_BACKENDS}.triton_attn:TritonAttentionMetadata",
        "cuda",
        has=("query_start_loc", "seq_lens", "rswa_prefix_lens", "rswa_window"),
    ),
    Pin(f"{_BACKENDS}.triton_attn:TritonAttentionMetadataBuilder.build", "cuda", takes=_BUILD),
    Pin(f"{_BACKENDS}.flash_attn:FlashAttentionBackend.forward_includes_kv_cache_update", "cuda", equals=(False,)),
    Pin(f"{_BACKENDS}.flash_attn:FlashAttentionImpl.do_kv_cache_update", "cuda", takes=_UPDATE),
    Pin(f"{_BACKENDS}.flash_attn:FlashAttentionMetadataBuilder.build", "cuda", takes=_BUILD),
)

_ENGINE = (
    Pin(
        "vllm:EngineArgs",
        "engine",
        takes=(
            *("model", "dtype", "skip_tokenizer_init", "generation_config", "enforce_eager", "max_model_len"),
            *("max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes", "enable_prefix_caching"),
            *("limit_mm_per_prompt", "mm_processor_cache_gb", "disable_log_stats", "use_tqdm_on_load"),
            "worker_extension_cls",
        ),
    ),
    Pin(
        "vllm:SamplingParams",
        "engine",
        takes=(
            *("max_tokens", "temperature", "top_k", "top_p", "seed", "repetition_penalty", "stop_token_ids"),
            *("ignore_eos", "logprobs", "flat_logprobs", "detokenize", "output_kind"),
        ),
    ),
    Pin("vllm.utils.cpu_resource_utils:get_allowed_cpu_list", "cpu", takes=()),
    Pin("vllm.utils.cpu_resource_utils:LogicalCPUInfo", "cpu", has=("numa_node",)),
    Pin("vllm.utils.cpu_resource_utils:get_memory_node_info", "cpu", takes=("node_id",)),
    Pin("vllm.utils.cpu_resource_utils:MemoryNodeInfo", "cpu", has=("available_memory",)),
    Pin("vllm.sampling_params:RequestOutputKind", "engine", has=("DELTA", "FINAL_ONLY")),
    Pin("vllm.outputs:RequestOutput", "engine", has=("request_id", "outputs", "finished")),
    Pin("vllm.outputs:CompletionOutput", "engine", has=("token_ids", "cumulative_logprob", "finish_reason")),
    Pin("vllm.v1.engine.exceptions:EngineDeadError", "engine"),
    Pin("vllm.v1.engine.llm_engine:LLMEngine", "engine", has=("vllm_config", "engine_core", "output_processor")),
    Pin("vllm.v1.engine.output_processor:OutputProcessor", "engine", has=("request_states",)),
    Pin("vllm.v1.engine.output_processor:RequestState", "engine", has=("detokenizer",)),
    Pin("vllm.v1.engine.detokenizer:IncrementalDetokenizer.num_output_tokens", "engine"),
    Pin("vllm.v1.engine.llm_engine:LLMEngine.from_engine_args", "engine", takes=("engine_args",)),
    Pin("vllm.v1.engine.llm_engine:LLMEngine.add_request", "engine", takes=("request_id", "prompt", "params")),
    Pin("vllm.v1.engine.llm_engine:LLMEngine.has_unfinished_requests", "engine"),
    Pin("vllm.v1.engine.llm_engine:LLMEngine.step", "engine"),
    Pin("vllm.v1.engine.llm_engine:LLMEngine.abort_request", "engine", takes=("request_ids",)),
    Pin("vllm.v1.engine.llm_engine:LLMEngine.collective_rpc", "engine", takes=("method", "args")),
    Pin("vllm.v1.engine.llm_engine:LLMEngine.apply_model", "engine", takes=("func",)),
)

_RENDERER = (
    Pin(
        "vllm.renderers.base:BaseRenderer", "renderer", takes=("config", "tokenizer"), has=("_executor", "model_config")
    ),
    Pin("vllm.renderers.base:BaseRenderer.default_chat_tok_params", "renderer"),
    Pin("vllm.renderers.base:BaseRenderer.tokenize_prompt", "renderer", takes=("prompt", "params")),
    Pin("vllm.renderers.base:BaseRenderer.tokenize_prompt_async", "renderer", takes=("prompt", "params")),
    Pin("vllm.renderers.base:BaseRenderer.render_messages", "renderer", takes=("messages", "params")),
    Pin("vllm.renderers.base:BaseRenderer.render_messages_async", "renderer", takes=("messages", "params")),
    Pin("vllm.renderers.base:BaseRenderer.render_completion_suffix", "renderer", takes=("prompt", "suffix")),
    Pin("vllm.renderers.params:ChatParams", "renderer", has=("chat_template_kwargs",)),
    Pin(
        "vllm.renderers.params:TokenizeParams",
        "renderer",
        has=("max_total_tokens", "truncate_prompt_tokens", "truncation_side", "needs_detokenization"),
    ),
    Pin("vllm.tokenizers.hf:get_cached_tokenizer", "renderer", takes=("tokenizer",)),
    Pin("vllm.utils.async_utils:make_async", "renderer", takes=("func", "executor")),
    Pin("vllm.multimodal.media:MEDIA_CONNECTOR_REGISTRY.load", "renderer", takes=("kwargs",)),
    Pin(
        "vllm.multimodal.media:MediaConnector",
        "renderer",
        takes=("media_io_kwargs", "allowed_local_media_path", "allowed_media_domains"),
    ),
    Pin("vllm.multimodal.media:MediaConnector.load_from_url", "renderer", takes=("url", "media_io", "fetch_timeout")),
    Pin(
        "vllm.multimodal.media:MediaConnector.load_from_url_async",
        "renderer",
        takes=("url", "media_io", "fetch_timeout"),
    ),
    Pin("vllm.multimodal.media:MediaIO.get_max_bytes", "renderer"),
    Pin("vllm.multimodal.media:MediaIO.load_bytes", "renderer", takes=("data",)),
    Pin("vllm.multimodal.media:MediaIO.load_base64", "renderer", takes=("media_type", "data")),
    Pin("vllm.multimodal.media:MediaIO.load_file", "renderer", takes=("filepath",)),
    Pin("vllm.multimodal.media:MediaWithBytes", "renderer", has=("original_bytes",)),
    Pin(
        "vllm:envs",
        "renderer",
        has=("VLLM_MEDIA_CONNECTOR", "VLLM_IMAGE_FETCH_TIMEOUT", "VLLM_MAX_IMAGE_PIXELS"),
    ),
)

PINS: tuple[Pin, ...] = (*_REGISTRATION, *_CONFIGURATION, *_DOCUMENTS, *_MODEL, *_CPU, *_CUDA, *_ENGINE, *_RENDERER)
