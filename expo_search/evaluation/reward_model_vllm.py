"""completions -> rewards: the sequence classifier in a vLLM engine (its pooling runner), in a process of its own.

The sequences are those of `reward_model.py`; the values differ from its by the rounding of other matrix products. The
engine that answers is another one, in this process or not: two cannot run in one process. Source: vLLM 0.32,
`entrypoints/pooling/offline.py` and `v1/engine/llm_engine.py`.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from expo_search.config.spec import RewardSpec
from expo_search.dtypes import reward_arithmetic
from expo_search.errors import EngineDied, RewardError
from expo_search.evaluation.conversation_scorer import ConversationScorer
from expo_search.evaluation.reward_model import load_classifier

_CLOSE_S = 20.0


class Watch(Protocol):
    """What notices that a process no longer answers; `engine/watchdog.py` has one.

    Attributes:
        processes: ids of those to watch.
    """

    processes: Sequence[int]

    def watching(self) -> AbstractContextManager[None]:
        """Watch a call, which raises `EngineDied` where it would never end."""

    def progress(self) -> None:
        """Restart the time limit."""

    def close(self) -> None:
        """Stop watching."""


@dataclass(frozen=True)
class EngineProcess:
    """How the engine's process is started.

    Attributes:
        environment: variables that it is started with.
        kv_cache_bytes: size of its cache of keys and values, which bounds how many tokens are rated at once.
        gpu_memory_utilization: the share of the GPU that must be free; None on a CPU.
        watch: without one, a process that is killed can leave `score` waiting forever.
    """

    environment: Mapping[str, str]
    kv_cache_bytes: int
    gpu_memory_utilization: float | None = None
    watch: Watch | None = None


class VllmRewardModel(ConversationScorer):
    """As `SequenceRewardModel`, served by vLLM. `close` ends its process.

    Raises (on construction):
        RewardError: more than one label, a model that vLLM does not know, weights that are missing, no memory.
    """

    def __init__(
        self, path: Path, spec: RewardSpec, process: EngineProcess, *, trust_remote_code: bool = False
    ) -> None:
        import torch

        super().__init__(path, spec, trust_remote_code=trust_remote_code)
        # vLLM 0.32 also starts where a file lacks the head; transformers reads the header of the file alone here
        config = load_classifier(path, trust_remote_code=trust_remote_code, device_map="meta").config
        self._keep_within(getattr(config.get_text_config(), "max_position_embeddings", None))
        self._pad = self.tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id
        self.dtype: torch.dtype = getattr(torch, reward_arithmetic(spec.arithmetic, cuda=torch.cuda.is_available()))
        self._watch = process.watch
        self._n_requests = 0
        self._engine = self._start(path, process, trust_remote_code=trust_remote_code)
        # private: vLLM tells nowhere else which process computes
        processes = self._engine.engine_core.resources.engine_manager.processes
        self._pids = [int(p.pid) for p in processes]
        if self._watch is not None:
            self._watch.processes = self._pids

    def close(self) -> None:
        """Stop the engine and end its process."""
        if self._watch is not None:
            self._watch.close()
        # vLLM's own shutdown waits for its processes, possibly forever if one was killed
        closing = threading.Thread(target=self._engine.engine_core.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_S)
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _start(self, path: Path, process: EngineProcess, *, trust_remote_code: bool) -> Any:
        with _started_with({**process.environment, "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}):
            try:
                from vllm.config import PoolerConfig
                from vllm.engine.arg_utils import EngineArgs
                from vllm.usage.usage_lib import UsageContext
                from vllm.v1.engine.llm_engine import LLMEngine

                share = process.gpu_memory_utilization
                settings = EngineArgs(
                    model=str(path),
                    tokenizer=str(path),
                    trust_remote_code=trust_remote_code,
                    runner="pooling",
                    convert="classify",
                    pooler_config=PoolerConfig(use_activation=False),  # the score itself, as it was trained
                    load_format="safetensors",
                    dtype=str(self.dtype).removeprefix("torch."),
                    max_model_len=self._cap,
                    max_num_batched_tokens=max(self._spec.batch_tokens, self._cap),
                    enable_chunked_prefill=False,
                    enable_prefix_caching=False,
                    kv_cache_memory_bytes=process.kv_cache_bytes,
                    enforce_eager=True,  # whole prompts only: large products, which a CUDA graph would not speed up
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                    **({} if share is None else {"gpu_memory_utilization": share}),
                )
                # in a process of its own whatever the environment says: vLLM reads that once, for its first engine
                return LLMEngine.from_engine_args(
                    settings, usage_context=UsageContext.LLM_CLASS, enable_multiprocessing=True
                )
            except (ImportError, ValueError, RuntimeError, NotImplementedError, MemoryError, OSError) as fault:
                raise RewardError(
                    where=f"reward model {path} in vLLM",
                    found=" ".join(str(fault).split())[:300],
                    expected="an engine that starts",
                    do='see the log file for vLLM\'s own words, or take the reward backend "transformers"',
                ) from fault

    def _rate(self, sequences: Sequence[list[int]]) -> Iterator[tuple[list[int], list[float]]]:
        """All are handed over at once, longest first; vLLM fills its batches from them."""
        rows: dict[str, int] = {}
        try:
            with self._working():
                for row in sorted(range(len(sequences)), key=lambda r: -len(sequences[r])):
                    self._n_requests += 1
                    request = str(self._n_requests)
                    self._engine.add_request(request, self._prompt(sequences[row]), self._params())
                    rows[request] = row
            while rows:
                with self._working():
                    outputs = [o for o in self._engine.step() if o.finished]
                if outputs:
                    if self._watch is not None:
                        self._watch.progress()
                    rated = [rows.pop(o.request_id) for o in outputs]
                    yield rated, [float(o.outputs.data.reshape(-1)[0]) for o in outputs]
        finally:
            if rows:  # the caller stopped early, or a call failed: leave an engine that still runs idle
                with suppress(RewardError), self._working():
                    self._engine.abort_request(list(rows))

    def _prompt(self, sequence: list[int]) -> dict[str, list[int]]:
        """Up to the last token that is not padding, where transformers reads the score; a template may end in one."""
        end = len(sequence)
        while end > 1 and sequence[end - 1] == self._pad:
            end -= 1
        return {"prompt_token_ids": sequence[:end]}

    def _params(self) -> Any:
        from vllm import PoolingParams

        return PoolingParams(task="classify", use_activation=False)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Around a call into the engine: any failure of one is a `RewardError`."""
        try:
            with self._watch.watching() if self._watch is not None else nullcontext():
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


@contextmanager
def _started_with(environment: Mapping[str, str]) -> Iterator[None]:
    """Environment variables of this process and of those that are started within the block, put back after it.

    vLLM keeps what it read once an engine runs; that is dropped, and kept anew after the block.
    """
    before = dict(os.environ)
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # of the engine that answers; it would replace `kv_cache_bytes`
    os.environ.update(environment)
    try:
        from vllm import envs
    except ImportError:  # whose absence is said where vLLM is used
        envs = None
    was_kept = envs is not None and hasattr(envs.__getattr__, "cache_clear")
    if was_kept:
        envs.disable_envs_cache()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        if was_kept:
            envs.enable_envs_cache()
