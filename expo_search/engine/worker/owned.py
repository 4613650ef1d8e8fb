"""A vLLM worker whose engine ends with the process that started it."""

from __future__ import annotations

from collections.abc import Sequence

from expo_search.owner import end_with


class OwnedWorker:
    """Worker extension: vLLM mixes it into its worker class, and `collective_rpc` calls it on every rank."""

    def expo_end_with(self, owner: int, processes: Sequence[int]) -> None:
        """End the engine's processes when the one that started them has ended; see `owner.py`."""
        end_with(owner, processes)
