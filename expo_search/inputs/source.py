"""What a pair was resolved to: checkpoints in local folders, with what they were asked for as."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from expo_search.errors import PairError

LOCAL = "local"
PLUG_IN = "plug-in"  # revision of a name without a checkpoint: the caller passed its own model or scorer


@dataclass(frozen=True)
class Source:
    """One checkpoint: where it is on this machine, what it was asked for as, and the revision it turned out to be.

    Attributes:
        is_outline: the folder has no weights (`hub_outline`). to_fetch: bytes that are then still on the Hub alone.
    """

    path: Path
    id: str
    revision: str
    on_hub: bool = False
    is_outline: bool = False
    to_fetch: int = 0

    @property
    def loadable(self) -> str:
        """The name by which other tools load it from anywhere: a Hub id, or a folder's whole path.

        One that others are told (`provenance.public`) has no whole path, and its name stands for it.
        """
        is_short = self.revision == LOCAL and not self.path.is_absolute()
        return self.id if self.on_hub or is_short else str(self.path)


@dataclass(frozen=True)
class Pair:
    """The checkpoints of a search, all local.

    Attributes:
        reward_model: None where a scorer rates in its place, or several reward models do.
        reward_models: where several rate, these.
        base, adapter: where aligned is a base with an adapter merged in, those two.
    """

    aligned: Source
    sft: Source
    reward_model: Source | None = None
    base: Source | None = None
    adapter: Source | None = None
    reward_models: tuple[Source, ...] = ()

    @property
    def rating(self) -> tuple[Source, ...]:
        """The reward models that rate; none where a scorer does."""
        return self.reward_models or (() if self.reward_model is None else (self.reward_model,))

    @property
    def sources(self) -> dict[str, Source]:
        """What there is, by its role; of several reward models the first is `reward_model_1`."""
        one = {role: getattr(self, role) for role in ("aligned", "sft", "reward_model", "base", "adapter")}
        several = {f"reward_model_{i}": source for i, source in enumerate(self.reward_models, 1)}
        return {role: source for role, source in one.items() if source is not None} | several

    @property
    def has_outlines(self) -> bool:
        """Whether of any of them the weights were not fetched."""
        return any(source.is_outline for source in self.sources.values())

    @property
    def to_fetch(self) -> int:
        """Bytes that are still on the Hub alone."""
        return sum(source.to_fetch for source in self.sources.values())

    def refuse_outlines(self) -> None:
        """Check that all weights are here, before any are loaded.

        Raises:
            PairError: of one there is an outline alone.
        """
        for role, source in self.sources.items():
            if source.is_outline:
                raise PairError(
                    where=f"{role} {source.id}",
                    found="headers alone, as asked for with fetch=False",
                    expected="its weights",
                    do="open the session without it",
                )

    def rated_by(self, reward_model: Source) -> Pair:
        """This pair with one reward model alone."""
        return replace(self, reward_model=reward_model, reward_models=())

    @property
    def reward_source(self) -> Source:
        """The reward model, where one rates."""
        assert self.reward_model is not None, "the caller knows that one rates"
        return self.reward_model


# roles whose code is run if it is trusted -> the setting of their revision; of the others only tensors are read
CODE_REVISIONS = {"aligned": "aligned_revision", "reward model": "reward_revision"}
CODE_REVISIONS |= {"check reward model": "check_reward_revision", "one of the reward models": "revision"}
