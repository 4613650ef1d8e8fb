"""What an engine and its libraries change in the process that starts them, put back when they are gone."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def process_left_as_it_was() -> Iterator[None]:
    """Put back environment variables, signal handlers, warning filters, the collector's state, and log levels.

    Within it libraries have the defaults of `set_defaults_of_libraries`, and vLLM logs errors alone. vLLM reads its
    settings from the environment, freezes the collector's oldest objects and sets handlers; a notebook goes on after
    it. Signal handlers can be put back in the main thread alone.
    """
    environment, filters = dict(os.environ), list(warnings.filters)
    enabled, thresholds, n_frozen = gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    dynamo = _dynamo_disabled()
    optuna_level = _optuna_level()
    set_defaults_of_libraries(log_level="ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.")  # of its own calls
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        warnings.filters[:] = filters  # type: ignore[index]
        gc.set_threshold(*thresholds)
        (gc.enable if enabled else gc.disable)()
        if n_frozen == 0:
            gc.unfreeze()
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None and signal.getsignal(number) is not handler:
                    with suppress(OSError, ValueError):  # two that nobody may handle
                        signal.signal(number, handler)
        if dynamo is not None:
            sys.modules["torch"]._dynamo.config.disable = dynamo
        if optuna_level is not None:
            sys.modules["optuna"].logging.set_verbosity(optuna_level)


def set_defaults_of_libraries(*, log_level: str) -> None:
    """Environment variables that torch, OpenBLAS, tokenizers and vLLM read as they are loaded; one that is set stays.

    `log_level`: of vLLM's own log, such as "INFO".
    """
    # Waiting OpenMP threads that spin without end make everything many times slower as soon as another program runs;
    # threads that sleep at once cost a fifth of the speed of an idle machine. A short spin does neither.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # the sampler's matrices are tiny; its threads spin into the switch
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", log_level)


def _dynamo_disabled() -> bool | None:
    torch = sys.modules.get("torch")
    return bool(torch._dynamo.config.disable) if torch is not None and "torch._dynamo" in sys.modules else None


def _optuna_level() -> int | None:
    optuna = sys.modules.get("optuna")
    return None if optuna is None else int(optuna.logging.get_verbosity())
