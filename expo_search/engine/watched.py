"""A vLLM engine whose every call is watched: any failure of one is an `EngineDied`, after which it can be restarted."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from expo_search.engine.start import ModelSpec, imports_stay_frozen, start_engine
from expo_search.engine.watchdog import Watchdog
from expo_search.errors import EngineDied, ExpoError, MaterializeError

if TYPE_CHECKING:
    from vllm import LLM, CompletionOutput, RequestOutput, SamplingParams

_CLOSE_S = 20.0


class WatchedEngine:
    """What this project uses of `vllm.LLM`. Every method but `close` raises `EngineDied` when the engine fails."""

    def __init__(self, spec: ModelSpec, give_up: Callable[[EngineDied], None] | None = None) -> None:
        """`give_up` is called, from another thread, when a call hangs where nothing can interrupt it."""
        self._spec, self._give_up = spec, give_up
        self._stamp: str | None = None  # of the weights as they are; none before the first switch
        self._start()

    def call(self, method: str, *args: object) -> list[Any]:
        """Call a method of `materializer.ExpoWorker` on every rank; what each returns."""
        with self._working():
            results: list[Any] = self._llm.collective_rpc(method, args=args)
        self._watchdog.progress()
        return results

    def name_weights(self, alpha: float) -> None:
        """Stamp what is drawn from now on with an alpha, which the answers are checked for: see `_check_stamps`."""
        with self._working():
            self._llm.llm_engine.set_weight_version(stamp(alpha))
        self._stamp = stamp(alpha)

    def add(self, request: str, ids: Sequence[int], params: SamplingParams) -> None:
        """Ask for the answer to a prompt of token ids."""
        with self._working():
            self._llm.llm_engine.add_request(request, {"prompt_token_ids": list(ids)}, params)

    def step(self) -> list[RequestOutput]:
        """One step for all requests under way; their outputs so far."""
        with self._working():
            outputs: list[RequestOutput] = self._llm.llm_engine.step()
        self._check_stamps(o.outputs[0] for o in outputs)
        if any(o.finished or o.outputs[0].token_ids for o in outputs):
            self._watchdog.progress()
        return outputs

    def abort(self, requests: Sequence[str]) -> None:
        """Leave the engine without these requests."""
        with self._working():
            self._llm.llm_engine.abort_request(list(requests))

    def answer(self, prompt: Any, params: SamplingParams) -> CompletionOutput:
        """One request from its beginning to its end."""
        with self._working():
            output: CompletionOutput = self._llm.generate([prompt], params, use_tqdm=False)[0].outputs[0]
        self._check_stamps([output])
        self._watchdog.progress()
        return output

    def warm_up(self, prompt: Sequence[int], batches: Sequence[Sequence[SamplingParams]]) -> None:
        """Answer a prompt of token ids in batches of these sizes, and throw the answers away.

        Kernels that are compiled on the way can take minutes, so no time limit applies.
        """
        with self._working(timed=False):
            for batch in batches:
                self._llm.generate([{"prompt_token_ids": list(prompt)}] * len(batch), list(batch), use_tqdm=False)

    def forget_prefixes(self) -> bool:
        """Drop every cached prefix; False where requests are under way."""
        with self._working():
            return bool(self._llm.reset_prefix_cache())

    def restart(self) -> None:
        """End what is left of the engine, and start it anew with the memory that is free then.

        Raises:
            EngineError: it does not start, or there is no longer room for it.
        """
        self.end()
        self._spec = self._spec.planned_again()
        self._start()

    def end(self) -> None:
        """As `close`, of an engine that may hang or have died: its processes are killed."""
        for pid in (*_helpers(self._watchdog.processes), *self._watchdog.processes):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # vLLM's own shutdown waits for its processes, possibly forever if one was killed
        closing = threading.Thread(target=self.close, daemon=True)
        closing.start()
        closing.join(_CLOSE_S)
        gc.collect()
        _wait_for_end(self._watchdog.processes, _CLOSE_S)  # a process's memory on a GPU is free when it has ended

    def close(self) -> None:
        """Stop the engine and free its memory, the sources among it, whoever still refers to this object."""
        self._watchdog.close()
        llm: LLM | None = vars(self).pop("_llm", None)
        if llm is not None:
            with imports_stay_frozen():
                llm.llm_engine.engine_core.shutdown()

    def _start(self) -> None:
        # first: its thread takes a Ctrl-C that the start of the engine keeps from this one (see `start.py`)
        self._watchdog = Watchdog(self._spec.engine.timeout_s, self._give_up)
        self._stamp = None
        try:
            self._llm = start_engine(self._spec)
            self._watchdog.processes = processes_of(self.call("expo_pid"))
            if self._watchdog.processes:  # which would outlive this one where it is killed
                self.call("expo_end_with", os.getpid(), list(self._watchdog.processes))
        except BaseException:
            self.end()
            raise

    def _check_stamps(self, outputs: Iterable[CompletionOutput]) -> None:
        """Check that every token of the answers that have ended was drawn at the alpha that was set last.

        A second witness beside the canary, on every answer: vLLM's engine itself stamps each step's tokens, in the
        order in which it got the switch and the requests.

        Raises:
            MaterializeError: tokens of another alpha.
        """
        for output in outputs:
            others = {span.version for span in output.weight_versions or ()} - {self._stamp}
            if self._stamp is not None and others:
                raise MaterializeError(
                    where="an answer",
                    found=f"tokens that vLLM stamped with {', '.join(sorted(others))}",
                    expected=f"all of them with {self._stamp}",
                    do="report this: a request was under way during a switch",
                )

    @contextmanager
    def _working(self, *, timed: bool = True) -> Iterator[None]:
        try:
            with self._watchdog.watching(timed=timed):
                yield
        except ExpoError:
            raise
        except Exception as fault:  # vLLM raises what the worker raised, its own EngineDeadError, the socket's errors
            logging.getLogger(__name__).exception("the engine failed")  # into the log file, with the traceback
            raise EngineDied(
                where="vLLM engine",
                found=f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}",
                expected="an engine that answers",
                do="see the log file; the same command goes on from what is stored",
            ) from fault


def _wait_for_end(pids: Sequence[int], timeout_s: float) -> None:
    """Until all processes have ended, also those that nobody has waited for yet; or until the time is over.

    One that was killed is a zombie at once, but holds a GPU's memory until the last of its threads has ended.
    """
    import psutil

    def runs(pid: int) -> bool:
        try:
            process = psutil.Process(pid)
            return process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1
        except psutil.NoSuchProcess:
            return False

    end = time.monotonic() + timeout_s
    while any(map(runs, pids)) and time.monotonic() < end:
        time.sleep(0.05)


def stamp(alpha: float) -> str:
    """An alpha as answers are stamped with it, in all its digits."""
    return f"alpha = {alpha!r}"


def processes_of(ranks: Iterable[int]) -> list[int]:
    """The engine's own processes: those of its ranks, and those between them and this one, which started them.

    Whatever else the engine starts (compilers, trackers of resources) may end at any time, and does no harm by it.

    Args:
        ranks: the process of each rank; this one, where the engine runs in it.
    """
    import psutil

    own: set[int] = set()
    for pid in ranks:
        with suppress(psutil.NoSuchProcess):  # a rank on another machine: vLLM itself watches those
            chain = [pid, *(p.pid for p in psutil.Process(pid).parents())]
            if os.getpid() in chain:
                own.update(chain[: chain.index(os.getpid())])
            else:
                own.add(pid)  # it was not started from here, so nothing above it is the engine's
    return sorted(own)


def _helpers(processes: Iterable[int]) -> set[int]:
    """What an engine's processes have started besides each other, as far as these still run.

    Python's tracker of resources is none: it ends after the last process that uses it, and removes what they left.
    """
    import psutil

    helpers = set()
    for pid in processes:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):  # it has ended, or is a zombie
                    if not any("resource_tracker" in word for word in child.cmdline()):
                        helpers.add(child.pid)
    return helpers - set(processes)
