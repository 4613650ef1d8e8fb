"""A `ModelSpec` -> a running vLLM engine whose weights can be switched. The only place that knows CPU from GPU.

vllm is imported when an engine is started, not before.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from expo_search.checkpoint.folder import Checkpoint, open_checkpoint
from expo_search.config.spec import EngineSpec, RewardSpec, SamplingSpec
from expo_search.dtypes import Dtypes, arithmetic, reward_arithmetic, weights_dtype
from expo_search.engine.machine import compute_capability, has_gpu, multiplies_in
from expo_search.engine.memory_plan import MemoryPlan, n_at_once
from expo_search.engine.vllm_version import check_vllm
from expo_search.errors import EngineError, ExpoError

if TYPE_CHECKING:
    from vllm import LLM

_LEAST_INVARIANT = (8, 0)  # vLLM 0.32's documents, "Batch Invariance"
_FREEZE, _THAW = gc.freeze, gc.unfreeze
_START_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
# A step of a GPU takes milliseconds, and handing over a few hundred outputs as much again. Not on a CPU: there a step
# may take a second, and the watchdog (`timeout_s`) and the progress shown go by tokens that were handed over.
_OUTPUT_TOKENS = 16
INSTALL = 'install it with: pip install "expo-search[gpu]" (CUDA) or pip install "expo-search[cpu]"'


@dataclass(frozen=True)
class ModelSpec:
    """Everything an engine is made from: two local folders, how to talk to the model, and engine options.

    Attributes:
        gpu_memory_utilization, sources_on_host: see `memory_plan.py`; the former is None on a CPU.
        shared_sources: the pair's name in host memory that the engines of this machine share; None: its own copy.
        plan_again: the memory plan for an engine that is started anew, with what is free when it is called.
        output_tokens: of a request whose answer is not shown as it comes, tokens that vLLM hands over at once.
        load_format: a benchmark's own loader.
    """

    aligned: Path
    sft: Path
    sampling: SamplingSpec
    engine: EngineSpec
    seed: int
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    chat_template: str | None = None
    trust_remote_code: bool = False
    gpu_memory_utilization: float | None = None
    sources_on_host: bool = True
    shared_sources: str | None = None
    plan_again: Callable[[], MemoryPlan] | None = None
    output_tokens: int = 1
    load_format: str | None = None

    def planned(self, plan: MemoryPlan) -> ModelSpec:
        """The same engine, with what a memory plan gives it."""
        on_gpu = plan.gpu_memory_utilization is not None
        return replace(
            self,
            engine=self.engine.model_copy(update={"max_num_seqs": plan.max_num_seqs}),
            gpu_memory_utilization=plan.gpu_memory_utilization,
            sources_on_host=plan.sources == "host",
            output_tokens=_OUTPUT_TOKENS if on_gpu else 1,
        )

    def planned_again(self) -> ModelSpec:
        """As `planned`, with what is free now; the same on a CPU, which plans its KV cache by its size alone.

        Raises:
            EngineError: there is no longer room for the engine.
        """
        if self.plan_again is None or self.gpu_memory_utilization is None:
            return self
        return self.planned(self.plan_again())


@dataclass(frozen=True)
class SourcesReport:
    """The two sources as the engine loaded them.

    Attributes:
        aligned, sft: fingerprints.
        relative_delta: ||aligned - sft|| / ||aligned||; of several ranks the mean, weighted by bytes.
        changed_share: share of elements that differ, 0..1; of several ranks likewise.
        n_bytes: size of both sources, over all ranks.
    """

    aligned: str
    sft: str
    relative_delta: float
    changed_share: float
    n_bytes: int

    @classmethod
    def of_ranks(cls, ranks: Sequence[dict[str, Any]]) -> SourcesReport:
        """Join the reports of the tensor-parallel ranks."""
        n_bytes = [r["n_bytes"] for r in ranks]

        def mean(key: str) -> float:
            return float(sum(r[key] * n for r, n in zip(ranks, n_bytes, strict=True)) / sum(n_bytes))

        return cls(
            "-".join(r["aligned"] for r in ranks),
            "-".join(r["sft"] for r in ranks),
            mean("relative_delta"),
            mean("changed_share"),
            sum(n_bytes),
        )


def engine_settings(
    engine: EngineSpec, *, cuda: bool, gpu_memory_utilization: float | None
) -> tuple[dict[str, str], dict[str, Any]]:
    """Environment variables and `vllm.LLM` arguments for this hardware. The only place that knows CPU from GPU."""
    settings: dict[str, Any] = {"max_num_seqs": n_at_once(engine)}
    if cuda:
        share = {} if gpu_memory_utilization is None else {"gpu_memory_utilization": gpu_memory_utilization}
        # A process that is forked off cannot use CUDA once this one has (a memory plan does, a reward model does).
        spawned = {_START_METHOD: os.environ.get(_START_METHOD, "spawn")}
        invariant = {"VLLM_BATCH_INVARIANT": "1"} if engine.batch_invariant else {}
        return spawned | invariant, settings | share
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": str(engine.kv_cache_gib),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        # An eager engine compiles a helper of the log-probabilities: seconds at the first token, nothing gained later.
        "TORCHDYNAMO_DISABLE": "1",
        # In this process where there is one rank: starts in seconds, and engine and scorer both use every core.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if engine.tensor_parallel == 1 and not engine.own_process else "1",
    }
    if engine.tensor_parallel > 1:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = _cores_by_rank(engine.tensor_parallel)
    return environment, settings | {
        "enforce_eager": True,
        # vLLM 0.32 on a CPU: a per-request seed with a chunked prefill crashes
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(4096, engine.max_model_len),
    }


def attention_settings(config: Mapping[str, Any], dtype: str, *, cuda: bool) -> dict[str, Any]:
    """`vllm.LLM` arguments for a model of this config.json that multiplies in `dtype`.

    vLLM 0.32 takes AMX's kernels for multi-head latent attention on every processor that has AMX, whatever the dtype
    (`CpuPlatform.get_attn_backend_cls`), and they hold bfloat16 alone (`AMXMLABackend.supported_dtypes`).
    """
    latent = config.get("kv_lora_rank") is not None
    return {"attention_backend": "CPU_MLA"} if latent and dtype != "bfloat16" and not cuda else {}


def dtypes_of(engine: EngineSpec, reward: RewardSpec, aligned: Checkpoint) -> Dtypes:
    """What the weights are in and what is multiplied in, on this machine. Loads torch.

    Raises:
        StudyError: an arithmetic that cannot hold the weights.
    """
    weights = weights_dtype(engine.dtype, aligned.config, aligned.dtypes)
    native, where = multiplies_in(weights), f"weights of {aligned.path}"
    computed = arithmetic(engine.arithmetic, weights, native=native, where=where)
    return Dtypes(weights, computed, reward_arithmetic(reward.arithmetic, cuda=has_gpu()))


def check_batch_invariant(engine: EngineSpec) -> None:
    """Check that this machine has kernels that do not depend on the batch, where they are asked for.

    Raises:
        EngineError: it has none.
    """
    capability = compute_capability() if engine.batch_invariant else _LEAST_INVARIANT
    if capability is None or capability < _LEAST_INVARIANT:
        raise EngineError(
            where="--batch-invariant",
            found="no GPU" if capability is None else f"a GPU of compute capability {capability[0]}.{capability[1]}",
            expected="one of compute capability 8.0 or newer, for which vLLM has such kernels",
            do="leave the option out",
        )


def _cores_by_rank(ranks: int) -> str:
    """This process's cores dealt out to the ranks, as vLLM wants them ("0,2|1,3"); it else wants a NUMA node each."""
    cores = sorted(os.sched_getaffinity(0))
    return "|".join(",".join(map(str, cores[rank::ranks] or cores)) for rank in range(ranks))


def start_engine(spec: ModelSpec) -> LLM:
    """Start vLLM with both checkpoints loaded, live at alpha = 0. Takes seconds to minutes.

    Sets environment variables that vLLM reads, and freezes the garbage collector's present objects.

    Raises:
        EngineError: vLLM is not installed, or cannot start with these checkpoints and options.
        CheckpointError: `aligned` is no whole checkpoint.
        StudyError: an arithmetic that cannot hold the weights.
        MaterializeError, PairError: what `worker/loader.py` finds in the checkpoints.
    """
    is_first = "vllm" not in sys.modules
    try:
        import torch

        environment, settings = engine_settings(
            spec.engine, cuda=has_gpu(), gpu_memory_utilization=spec.gpu_memory_utilization
        )
        check_batch_invariant(spec.engine)
        os.environ.update(environment)  # vLLM reads these when it is imported, and its workers inherit them
        torch._dynamo.config.disable = "TORCHDYNAMO_DISABLE" in environment  # it may have been imported before
        from vllm import LLM
    except ImportError as fault:
        raise EngineError(
            where="vllm", found=f"not installed ({fault})", expected="vllm beside expo-search", do=INSTALL
        ) from None
    check_vllm()
    from expo_search.engine.worker import loader  # registers the load format, as workers do with the extension

    aligned = open_checkpoint(spec.aligned, role="aligned")
    dtypes = dtypes_of(spec.engine, RewardSpec(), aligned)
    settings |= attention_settings(aligned.config, dtypes.engine, cuda=has_gpu())
    options = {
        loader.SFT_OPTION: str(spec.sft),
        loader.HOST_OPTION: spec.sources_on_host,
        loader.SHARED_OPTION: spec.shared_sources,
        loader.WEIGHTS_OPTION: dtypes.weights if dtypes.engine != dtypes.weights else None,
    }
    if not is_first:
        gc.collect()  # before freezing, so that what a dead engine left is freed
    gc.freeze()  # the objects of the imports, which vLLM's collections need not go through
    with TemporaryDirectory(prefix="expo-search-") as folder:
        fault_file = Path(folder) / "fault"
        try:
            with not_for_children(), imports_stay_frozen():
                return LLM(
                    model=str(spec.aligned),
                    tokenizer=str(spec.aligned),
                    trust_remote_code=spec.trust_remote_code,
                    runner="generate",
                    dtype=dtypes.engine,  # never "auto": vLLM may then round the weights otherwise, with a warning
                    max_model_len=spec.engine.max_model_len,
                    tensor_parallel_size=spec.engine.tensor_parallel,
                    # in a process that Ray runs, vLLM's own choice would be Ray once more
                    distributed_executor_backend="mp" if spec.engine.tensor_parallel > 1 else None,
                    seed=spec.seed,
                    load_format=spec.load_format or loader.LOAD_FORMAT,
                    model_loader_extra_config=options | {loader.FAULT_OPTION: str(fault_file)},
                    worker_extension_cls="expo_search.engine.worker.materializer.ExpoWorker",
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                    **settings,
                )
        except ExpoError:
            _leave_no_process_groups()
            raise
        except (ValueError, RuntimeError, NotImplementedError, MemoryError, OSError) as fault:
            _leave_no_process_groups()
            if fault_file.exists():
                raise loader.read_fault(fault_file) from fault
            raise EngineError(
                where=f"vLLM engine for {spec.aligned}",
                found=" ".join(str(fault).split())[:300],
                expected="an engine that starts",
                do="see the log file for vLLM's own words",
            ) from fault


def _leave_no_process_groups() -> None:
    """Undo what an engine that did not start set up in this process: the next one may be of another kind of model."""
    from expo_search.engine.worker.vllm_names import destroy_distributed_environment, destroy_model_parallel

    destroy_model_parallel()
    destroy_distributed_environment()


@contextmanager
def imports_stay_frozen() -> Iterator[None]:
    """Keep vLLM from freezing and thawing the garbage collector's objects within the block.

    Its engine freezes itself once it runs (`EngineCore.__init__`) and thaws everything before it is freed
    (`EngineCore.shutdown`, `cleanup_dist_env_and_memory`), since its own objects are among the frozen ones. So its two
    collections there go through all that was ever imported, two seconds at the end of each command. An engine that is
    not frozen has a tenth of those objects, and is freed as well.
    """
    gc.freeze = gc.unfreeze = lambda: None
    try:
        yield
    finally:  # not what was there before the block: an engine may hang at its end while the next one starts
        gc.freeze, gc.unfreeze = _FREEZE, _THAW


@contextmanager
def not_for_children() -> Iterator[None]:
    """Keep Ctrl-C, which a terminal sends to every process, from the processes that are started within the block.

    They inherit the signal mask. This process still gets it, through threads that were started before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing starts it with its first process, and then lifts the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
