"""What a study's engine is on one machine of a cluster: what is there is checked, then an engine starts there.

`SiteRecipe` travels to the machine. The checkpoints are folders of the same path there, such as on a file system that
all share, or the same revision of the Hub, which the machine fetches into its own cache; or they are built there from
the parts that ship with the package.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from expo_search.checkpoint.folder import Checkpoint, open_checkpoint
from expo_search.config.spec import PairSpec, StudySpec
from expo_search.dtypes import Dtypes
from expo_search.engine.machine import environment, has_gpu
from expo_search.engine.memory_plan import MemoryPlan
from expo_search.engine.ranks import check_ranks
from expo_search.engine.start import INSTALL, SourcesReport, check_batch_invariant, dtypes_of
from expo_search.engine.trial_time import Workload
from expo_search.engine.vllm_version import installed_vllm
from expo_search.errors import EngineDied, EngineError
from expo_search.inputs.pair import pinned, resolve_pair
from expo_search.inputs.source import LOCAL, Pair, Source
from expo_search.pool.actor import Share, Started
from expo_search.session.planning import plans, search_needs
from expo_search.session.process_state import set_defaults_of_libraries
from expo_search.session.starting import model_spec, start_rating
from expo_search.version import __version__

if TYPE_CHECKING:
    from expo_search.engine.canary import Noise


@dataclass(frozen=True)
class Survey:
    """What one machine has; all but the plan must be the same on all.

    Attributes:
        versions: of expo-search, Python and vLLM.
        contents: what is in the checkpoints' files, by role.
        memory: of each engine there.
    """

    versions: Mapping[str, str]
    contents: Mapping[str, str]
    dtypes: Dtypes
    memory: MemoryPlan


@dataclass(frozen=True)
class EngineFacts:
    """An engine that has started; those of one pool are equal in what is compared.

    Attributes:
        aligned, sft: fingerprints of the two sources, as they were loaded.
        others: what need not be the same to the bit.
    """

    aligned: str
    sft: str
    versions: Mapping[str, str]
    sources: SourcesReport = field(compare=False)
    noise: Noise = field(compare=False)
    canary_s: float = field(compare=False)
    environment: Mapping[str, str] = field(compare=False)

    def __str__(self) -> str:
        made_of = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"weights {self.aligned} and {self.sft} in {made_of}"


@dataclass(frozen=True)
class SiteRecipe:
    """How the machines of a cluster check a study's input and start its engines.

    Attributes:
        spec, pair: as they were resolved where the search runs.
        work: an engine's part of a trial.
        own_scorer: each engine has the reward model, or all of several, beside it; else no machine needs their files.
        reads_whole: the checkpoints' files are hashed whole; else samples of them, as on a single machine.
    """

    spec: StudySpec
    pair: Pair
    work: Workload
    own_scorer: bool = True
    reads_whole: bool = False

    def survey(self, n_engines: int) -> Survey:
        """What this machine has.

        Raises:
            ExpoError: vLLM or a checkpoint is missing, or n engines do not fit.
        """
        set_defaults_of_libraries(log_level="ERROR")
        versions = versions_here()
        if not versions["vllm"]:
            raise EngineError(where="vllm", found="not installed", expected="vllm beside expo-search", do=INSTALL)
        check_batch_invariant(self.spec.engine)
        pair = self._pair_here()
        aligned, sft, rewards = self._checkpoints(pair)
        check_ranks(self.spec.engine.tensor_parallel, aligned.config)
        dtypes = dtypes_of(self.spec.engine, self.spec.reward, aligned)
        needs = search_needs(aligned, sft, rewards, dtypes, self.spec)
        shared = shared_name(aligned, sft)
        memory, _ = plans(needs, self.spec, rewards, self.work, n_engines=n_engines, shared_sources=shared)
        named = [f"reward model {i}" if len(rewards) > 1 else "reward model" for i, _ in enumerate(rewards, 1)]
        contents = {
            role: f"{c.header_hash} {c.content_hash() if self.reads_whole else c.sample_hash}"
            for role, c in zip(("aligned", "sft", *named), (aligned, sft, *rewards), strict=True)
        }
        return Survey(versions, contents, dtypes, memory)

    def start(self, share: Share) -> Started:
        """Start an engine, and load the reward model, or several, beside it."""
        set_defaults_of_libraries(log_level="ERROR")
        _keep_to(share)
        from expo_search.engine.model import VllmModel

        pair = self._pair_here()
        aligned, sft, rewards = self._checkpoints(pair)
        dtypes = dtypes_of(self.spec.engine, self.spec.reward, aligned)
        needs, shared = search_needs(aligned, sft, rewards, dtypes, self.spec), shared_name(aligned, sft)
        plan, again = plans(needs, self.spec, rewards, self.work, shared_sources=shared)
        made_of = model_spec(self.spec, pair, plan, again)
        model = VllmModel(replace(made_of, shared_sources=shared if share.of > 1 else None), _end_process)
        scorer = start_rating(self.spec, pair, plan, _end_process) if self.own_scorer else None
        facts = EngineFacts(
            aligned=model.sources.aligned,
            sft=model.sources.sft,
            versions=versions_here(),
            sources=model.sources,
            noise=model.noise,
            canary_s=model.canary_s,
            environment=environment(),
        )
        return Started(model, scorer, facts)

    def _pair_here(self) -> Pair:
        here = pinned(self.spec, self.pair)
        placed = [
            entry.model_copy(update={"model": str(source.path)}) if source.revision == LOCAL else entry
            for entry, source in zip(here.rewards, self.pair.reward_models, strict=True)
        ]
        return resolve_pair(
            here.pair.model_copy(update=_paths(self.spec.pair, self.pair)),
            rewards=placed if self.own_scorer else (),
            trust_remote_code=self.spec.trust_remote_code,
            say=lambda _: None,
            own_scorer=self.own_scorer,
            with_reward=self.pair.reward_model is not None,
        )

    def _checkpoints(self, pair: Pair) -> tuple[Checkpoint, Checkpoint, list[Checkpoint]]:
        judges = pair.rating if self.own_scorer else ()
        rewards = [open_checkpoint(judge.path, role="reward model") for judge in judges]
        return open_checkpoint(pair.aligned.path, role="aligned"), open_checkpoint(pair.sft.path, role="sft"), rewards


def shared_name(aligned: Checkpoint, sft: Checkpoint) -> str:
    """Of a pair in memory that the engines of this machine share: its files, and what lays them out there."""
    files = [(c.header_hash, c.sample_hash, c.stamps) for c in (aligned, sft)]
    return hashlib.sha256(json.dumps([files, versions_here()]).encode()).hexdigest()[:32]


def versions_here() -> dict[str, str]:
    """Of what must be the same on all machines."""
    package, version = installed_vllm() if find_spec("vllm") is not None else ("", "")
    vllm = f"{package} {version}".strip()
    return {"expo-search": __version__, "Python": ".".join(platform.python_version_tuple()[:2]), "vllm": vllm}


def _paths(spec: PairSpec, pair: Pair) -> dict[str, str]:
    """Local folders by their whole paths: on another machine the working folder is another one."""
    resolved: dict[str, Source | None] = {
        "aligned": pair.base or pair.aligned,
        "sft": pair.sft,
        "reward_model": pair.reward_model,
        "adapter": pair.adapter,
    }
    return {
        name: str(source.path)
        for name, source in resolved.items()
        if source is not None and source.revision == LOCAL and getattr(spec, name)
    }


def _keep_to(share: Share) -> None:
    """Keep this process to its part of the cores, where engines run on them."""
    import torch

    if not has_gpu():
        cores = share.cores(sorted(os.sched_getaffinity(0)))
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(len(cores))


def _end_process(_: EngineDied) -> None:
    """End this process at once: a call hangs in it where nothing can interrupt it, and the pool starts another."""
    os.kill(os.getpid(), signal.SIGKILL)
