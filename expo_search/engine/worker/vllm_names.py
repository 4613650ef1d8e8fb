"""Every name of vLLM's insides that this package uses, in one place, as vLLM 0.32 has them.

Everything else imports them from here, so that importing this module, and `missing_attributes`, tell whether another
version still has them all. What users of vLLM import (`vllm.LLM`, `SamplingParams`, the outputs) is not listed, nor
what only a running engine has: `engine_manager.processes`, `moe_kernel.fused_experts`, the parts of a worker.
"""

from __future__ import annotations

from typing import Any

from vllm import envs
from vllm.config import (
    CompilationConfig,
    ModelConfig,
    PoolerConfig,
    VllmConfig,
    get_current_vllm_config,
    set_current_vllm_config,
)
from vllm.config.load import LoadConfig
from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import initialize_model, process_weights_after_loading
from vllm.outputs import CompletionOutput
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.engine.core_client import BackgroundResources, EngineCoreClient
from vllm.v1.engine.llm_engine import LLMEngine

__all__ = [
    "DefaultModelLoader",
    "EngineArgs",
    "LLMEngine",
    "LoadConfig",
    "ModelConfig",
    "ParallelLMHead",
    "PoolerConfig",
    "QuantizeMethodBase",
    "RoutedExperts",
    "UnquantizedEmbeddingMethod",
    "UnquantizedLinearMethod",
    "UsageContext",
    "VllmConfig",
    "VocabParallelEmbedding",
    "current_platform",
    "destroy_distributed_environment",
    "destroy_model_parallel",
    "envs",
    "get_current_vllm_config",
    "initialize_model",
    "is_deferred_attention_layer",
    "missing_attributes",
    "process_weights_after_loading",
    "register_model_loader",
    "set_current_vllm_config",
    "set_default_torch_dtype",
]

_ATTRIBUTES: tuple[tuple[Any, tuple[str, ...]], ...] = (
    # of `LLM.llm_engine`, which `engine/watched.py` steps by itself, and of the engine that `engine/pooling.py` starts
    (LLMEngine, ("add_request", "step", "abort_request", "collective_rpc", "reset_prefix_cache", "set_weight_version")),
    (LLMEngine, ("from_engine_args",)),
    (EngineCoreClient, ("shutdown",)),
    (BackgroundResources, ("engine_manager",)),
    (CompletionOutput, ("weight_versions",)),
    (PoolerConfig, ("use_activation",)),
    (envs, ("disable_envs_cache", "enable_envs_cache")),
    # what `worker/loader.py` overrides and calls
    (DefaultModelLoader, ("load_weights", "get_all_weights", "_prepare_weights")),
    (QuantizeMethodBase, ("process_weights_after_loading",)),
    (ModelConfig, ("word_embeddings_untied_by_checkpoint",)),
    (CompilationConfig, ("static_forward_context",)),
    (FusedMoEConfig, ("hidden_dim_unpadded", "intermediate_size_per_partition_unpadded")),
)


def missing_attributes() -> list[str]:
    """Attributes that the installed vLLM lacks, as `Class.attribute`."""
    return [f"{owner.__name__}.{name}" for owner, names in _ATTRIBUTES for name in names if not _has(owner, name)]


def _has(owner: Any, name: str) -> bool:
    return hasattr(owner, name) or name in getattr(owner, "__dataclass_fields__", {})
