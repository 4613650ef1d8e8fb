"""token sequences -> a score each: a sequence classifier in a vLLM engine (its pooling runner), a process of its own.

The engine that answers is another one, in this process or not: two cannot run in one process. Source: vLLM 0.32,
`entrypoints/pooling/offline.py` and `v1/engine/llm_engine.py`.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expo_search.checkpoint.folder import INDEX, SINGLE
from expo_search.engine.start import INSTALL
from expo_search.engine.vllm_version import check_vllm
from expo_search.engine.watchdog import Watchdog
from expo_search.errors import EngineDied, EngineError, RewardError
from expo_search.text import first_of

_CLOSE_S = 20.0


@dataclass(frozen=True)
class PoolingSpec:
    """What the engine is made from, and how its process is started.

    Attributes:
        dtype: what it computes in, as torch spells it.
        max_model_len: tokens of a sequence at most; max_batched_tokens: of those that are computed together.
        kv_cache_bytes: size of its cache of keys and values, which bounds how many tokens are rated at once.
        environment: variables that the process is started with.
        gpu_memory_utilization: the share of the GPU that must be free; None on a CPU.
    """

    path: Path
    dtype: str
    max_model_len: int
    max_batched_tokens: int
    kv_cache_bytes: int
    environment: Mapping[str, str]
    gpu_memory_utilization: float | None = None
    trust_remote_code: bool = False


class PoolingEngine:
    """A running engine. Every method but `close` raises `RewardError` when it fails.

    Attributes:
        processes: their ids.

    Raises (on construction):
        EngineError: vLLM is not installed, or lacks a name that is used.
        RewardError: a model that vLLM does not know, or no memory.
    """

    def __init__(self, spec: PoolingSpec, watchdog: Watchdog) -> None:
        """`watchdog`: notices a process that no longer answers, and is closed with the engine."""
        self._watchdog = watchdog
        self._n_requests = 0
        self._engine = _start(spec)
        # private: vLLM tells nowhere else which process computes
        self.processes = [int(p.pid) for p in self._engine.engine_core.resources.engine_manager.processes]
        watchdog.processes = self.processes
        self._engine.collective_rpc("expo_end_with", args=(os.getpid(), self.processes))

    def close(self) -> None:
        """Stop the engine and end its process."""
        self._watchdog.close()
        # vLLM's own shutdown waits for its processes, possibly forever if one was killed
        closing = threading.Thread(target=self._engine.engine_core.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_S)
        for pid in self.processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def rate(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], list[float]]]:
        """Batches of (rows of `sequences`, their scores), as they are done.

        All are handed over at once, longest first; vLLM fills its batches from them.
        """
        rows: dict[str, int] = {}
        try:
            with self._working():
                for row in sorted(range(len(sequences)), key=lambda r: -len(sequences[r])):
                    self._n_requests += 1
                    request = str(self._n_requests)
                    self._engine.add_request(request, {"prompt_token_ids": list(sequences[row])}, _params())
                    rows[request] = row
            while rows:
                with self._working():
                    outputs = [o for o in self._engine.step() if o.finished]
                if outputs:
                    self._watchdog.progress()
                    rated = [rows.pop(o.request_id) for o in outputs]
                    yield rated, [float(o.outputs.data.reshape(-1)[0]) for o in outputs]
        finally:
            if rows:  # the caller stopped early, or a call failed: leave an engine that still runs idle
                with suppress(RewardError), self._working():
                    self._engine.abort_request(list(rows))

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Around a call into the engine: any failure of one is a `RewardError`."""
        try:
            with self._watchdog.watching():
                yield
        except Exception as fault:  # vLLM raises what the worker raised, its own EngineDeadError, the socket's errors
            logging.getLogger(__name__).exception("the reward model's engine failed")  # with the traceback
            what = fault.found if isinstance(fault, EngineDied) else f"{type(fault).__name__}: {fault}"
            raise RewardError(
                where="reward model in vLLM",
                found=" ".join(what.split())[:200],
                expected="an engine that answers",
                do="see the log file; the same command goes on from what is stored",
            ) from fault


def _refuse_further_files(path: Path) -> None:
    """Without an index vLLM reads every safetensors file of a folder; transformers and our checks read one.

    Raises:
        RewardError: there are others.
    """
    others = sorted(file.name for file in path.glob("*.safetensors") if file.name != SINGLE)
    if others and (path / SINGLE).is_file() and not (path / INDEX).is_file():
        raise RewardError(
            where=f"reward model {path}",
            found=f"{first_of(others, between=', ')} beside {SINGLE}, which vLLM would read too",
            expected="one file of weights, or an index of several",
            do='move the others elsewhere, or take the reward backend "transformers"',
        )


def _params() -> Any:
    from vllm import PoolingParams

    return PoolingParams(task="classify", use_activation=False)


def _start(spec: PoolingSpec) -> Any:
    _refuse_further_files(spec.path)
    share = spec.gpu_memory_utilization
    with _started_with({**spec.environment, "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}) as names:
        try:
            settings = names.EngineArgs(
                model=str(spec.path),
                tokenizer=str(spec.path),
                trust_remote_code=spec.trust_remote_code,
                runner="pooling",
                convert="classify",
                pooler_config=names.PoolerConfig(use_activation=False),  # the score itself, as it was trained
                load_format="safetensors",
                dtype=spec.dtype,
                max_model_len=spec.max_model_len,
                max_num_batched_tokens=spec.max_batched_tokens,
                worker_extension_cls="expo_search.engine.worker.owned.OwnedWorker",
                enable_chunked_prefill=False,
                enable_prefix_caching=False,
                kv_cache_memory_bytes=spec.kv_cache_bytes,
                enforce_eager=True,  # whole prompts only: large products, which a CUDA graph would not speed up
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **({} if share is None else {"gpu_memory_utilization": share}),
            )
            # in a process of its own whatever the environment says: vLLM reads that once, for its first engine
            return names.LLMEngine.from_engine_args(
                settings, usage_context=names.UsageContext.LLM_CLASS, enable_multiprocessing=True
            )
        except (ValueError, RuntimeError, NotImplementedError, MemoryError, OSError) as fault:
            raise RewardError(
                where=f"reward model {spec.path} in vLLM",
                found=" ".join(str(fault).split())[:300],
                expected="an engine that starts",
                do='see the log file for vLLM\'s own words, or take the reward backend "transformers"',
            ) from fault


@contextmanager
def _started_with(environment: Mapping[str, str]) -> Iterator[Any]:
    """Environment variables of this process and of those that are started within the block, put back after it.

    vLLM keeps what it read once an engine runs; that is dropped, and kept anew after the block. Gives the names that
    are used of it, imported with these variables.
    """
    before = dict(os.environ)
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # of the engine that answers; it would replace `kv_cache_bytes`
    os.environ.update(environment)
    envs = None
    try:
        names = _names()
        if hasattr(names.envs.__getattr__, "cache_clear"):
            envs = names.envs
            envs.disable_envs_cache()
        yield names
    finally:
        os.environ.clear()
        os.environ.update(before)
        if envs is not None:
            envs.enable_envs_cache()


def _names() -> Any:
    """The module of vLLM's names."""
    try:
        import vllm  # noqa: F401  (not at the top: it reads the environment)
    except ImportError as fault:
        raise EngineError(
            where="vllm", found=f"not installed ({fault})", expected="vllm beside expo-search", do=INSTALL
        ) from None
    check_vllm()
    from expo_search.engine.worker import vllm_names

    return vllm_names
