"""An alpha and its study -> `expo.json` and `mergekit.yaml`: where a model comes from, and how to make it again."""

from __future__ import annotations

import hashlib
import json
import reprlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from expo_search.bench.comparison import Compared
from expo_search.bench.result import BenchResult
from expo_search.checkpoint.side_files import PROVENANCE
from expo_search.config.faults import own_text, wanted
from expo_search.config.options import DEFAULT_STORAGE
from expo_search.config.own_scorer import shortened
from expo_search.config.spec import Finite, RewardSpec, StudySpec, asks_consent, is_here
from expo_search.errors import StudyError
from expo_search.evaluation.ensemble import Calibration
from expo_search.evaluation.result import Evaluation
from expo_search.evaluation.second_judge import Check
from expo_search.inputs.pair import pinned
from expo_search.inputs.source import LOCAL, Pair, Source
from expo_search.results.bench_guardrails import unmeasured
from expo_search.results.reward_models import ModelGain
from expo_search.results.summary_json import as_json, confirmation_json
from expo_search.results.verdict import Verdict
from expo_search.store.answer_rows import Stored
from expo_search.store.settings import Settings
from expo_search.text import shown
from expo_search.version import __version__
from expo_search.weights.formula import is_alpha
from expo_search.weights.shape import Shape, dimensions, shape_of

FORMULA = "aligned + alpha * (aligned - sft)"
_FORMAT = 1
_FAULTS_MAX = 3  # of one file that are named


@dataclass(frozen=True)
class Origin:
    """Everything that is known about where an exported model comes from.

    Attributes:
        trial: the trial at `alpha`; None if this alpha was not evaluated. `control`: the one at alpha = 0.
        answers, control_answers: what the two trials stored.
        settings: what all trials were made under.
        evaluated_on: environment of the trials.
        dtype: the weights' dtype that was asked for, or None; `out_dtype` is the one they then have.
        as_adapter: a rescaled adapter is written, not a checkpoint.
        storage: URL of the study's database.
        bench: what the study's alphas do on tasks that no reward model sees.
        filters: of mergekit, for an alpha with a shape: parts of weights' names, with their factor of alpha.
        checks: what second judges make of the trial.
        calibration: of a study that several reward models rate; model_gains: what each of them makes of the trial.
        shape_sentence: what is known of the shape against the one alpha; empty without a shape.
    """

    study: str
    spec: StudySpec
    settings: Settings
    pair: Pair
    alpha: float
    trial: Evaluation | None
    control: Evaluation
    evaluations: Sequence[Evaluation]
    verdict: Verdict
    answers: Sequence[Stored]
    control_answers: Sequence[Stored]
    evaluated_on: Mapping[str, str]
    dtype: str | None = None
    out_dtype: str | None = None
    as_adapter: bool = False
    storage: str = DEFAULT_STORAGE
    bench: BenchResult = field(default_factory=BenchResult)
    filters: Sequence[tuple[str, float]] = ()
    shape_sentence: str = ""
    is_forced: bool = False
    checks: Sequence[Check] = ()
    calibration: Calibration | None = None
    model_gains: Sequence[ModelGain] = ()

    @property
    def shape(self) -> Shape | None:
        """How alpha is spread over the weights; None where all have the same."""
        return shape_of(self.alpha)

    @property
    def compared(self) -> list[Compared]:
        """The benchmarks at this alpha, against alpha = 0."""
        return [c for c in self.bench.compared if c.alpha == self.alpha]

    @property
    def unmeasured(self) -> list[str]:
        """The tasks of the study's `[guardrails.bench]` to which this alpha was not held."""
        return list(unmeasured(self.bench, self.spec.guardrails.bench, self.alpha))

    @property
    def command(self) -> str:
        """The command that writes the same weights again on the machine of the search."""
        options = ["--shape", self.shape.kind] if self.shape else ["--alpha", repr(self.alpha)]
        options += ["--dtype", self.dtype] if self.dtype else []
        options += ["--as-adapter"] if self.as_adapter else []
        options += [] if self.trial and not self.is_forced else ["--force"]
        options += [] if self.storage == DEFAULT_STORAGE else ["--storage", shown(self.storage)]
        options += self.consent
        return shlex.join(["expo-search", "export", self.study, *options, "--out", "DIR"])

    @property
    def consent(self) -> list[str]:
        """The command line's option that allows remote code, if the study was given it; else empty."""
        return ["--trust-remote-code"] if self.spec.trust_remote_code else []

    @property
    def rated_by(self) -> tuple[str, str]:
        """What rated the answers, its kind and its name."""
        if self.calibration is not None:
            names = ", ".join(s.name for s in self.calibration.standards)
            return "reward models", f"{names}; {self.calibration.combine} of their standardised rewards"
        if self.pair.reward_model is None:
            reward = self.spec.reward
            if reward.judge_model is not None:
                return "judge", reward.judge_model
            return "scorer", (reward.scorer or "").removeprefix("./")
        return "reward model", self.pair.reward_model.id.removeprefix("./")


def provenance(origin: Origin) -> dict[str, Any]:
    """What `expo.json` holds; see `reproduce.py` for what is made of it."""
    confirmed = origin.verdict.confirmed
    # a scorer that a file names asks for consent even where the search, which was given its name, did not
    reward = origin.spec.reward
    consent = ["--trust-remote-code"] if asks_consent(reward.scorer, reward.judge_url) else origin.consent
    again = shlex.join(["expo-search", "reproduce", f"DIR/{PROVENANCE}", *consent])
    several: dict[str, Any] = {}
    if origin.calibration is not None:
        several["calibration"] = origin.calibration.as_json()
        several["reward_models"] = [gain.as_json() for gain in origin.model_gains]
    return {
        "format": _FORMAT,
        "made_by": f"expo-search {__version__}",
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "formula": FORMULA,
        "alpha": float(origin.alpha),
        "shape": origin.shape and origin.shape.as_json() | {"verdict": origin.shape_sentence},
        "evaluated": origin.trial is not None,
        "kind": "adapter" if origin.as_adapter else "checkpoint",
        "dtype": origin.out_dtype,
        "pair": {
            role: {"id": s.id, "revision": s.revision, "on_hub": s.on_hub} for role, s in origin.pair.sources.items()
        },
        "fingerprints": {
            "trial": origin.trial and origin.trial.fingerprint,
            "alpha=0": origin.control.fingerprint,
            "sft": origin.settings.weights.sft or None,
        },
        "study": origin.study,
        "verdict": {"word": origin.verdict.word, "sentence": origin.verdict.sentence()},
        "confirmation": confirmed and confirmation_json(confirmed),
        "checks": [check.as_json() for check in origin.checks],
        "trial": origin.trial and as_json(origin.trial),
        "control": as_json(origin.control),
        "bench": [c.as_json() for c in origin.compared],
        "answers": {"trial": _answers(origin.answers), "control": _answers(origin.control_answers)},
        "settings": origin.settings.flat(),
        "spec": _without_judge(pinned(origin.spec, origin.pair)).model_dump(mode="json"),
        "evaluated_on": dict(origin.evaluated_on),
        **several,
        "commands": {"export": origin.command} | ({"evaluate again": again} if origin.trial else {}),
    }


class _Table(BaseModel):
    model_config = ConfigDict(strict=True)


_Interval = Annotated[list[Finite | None], Field(min_length=2, max_length=2)]  # None: without an end


def _in_float32(alpha: float) -> float:
    if not is_alpha(alpha):
        raise ValueError("not finite in float32")
    return alpha


class _Trial(_Table):
    trial: Annotated[int, Field(ge=0, lt=2**31)]  # as a database keeps it
    alpha: Annotated[Finite, AfterValidator(_in_float32)]
    n_prompts: Annotated[int, Field(ge=1)]
    reward: Finite
    gain: Finite
    gain_95: _Interval
    difference: Finite
    difference_95: _Interval
    fingerprint: str


class _Answers(_Table):
    positions: list[int]
    sha256: list[str]
    rewards: list[Finite | None]

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if not len(self.positions) == len(self.sha256) == len(self.rewards):
            raise ValueError("lists of different lengths")
        return self


class _Shape(_Table):
    kind: str
    numbers: list[Finite]
    n_layers: Annotated[int, Field(ge=2, lt=2**16)]

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        try:
            n = len(dimensions(self.kind))
        except StudyError as fault:
            raise ValueError(f"not {fault.expected}") from None
        if n != len(self.numbers):
            raise ValueError(f"not {n} numbers, as {self.kind} has")
        return self


class _Standard(_Table):
    key: str
    name: str
    mean: Finite
    sd: Annotated[Finite, Field(gt=0)]


class _BothAnswers(_Table):
    trial: _Answers
    control: _Answers


class _Exported(_Table):
    """What `reproduce` takes from an `expo.json`; `spec` is checked where it is used, as in a study file."""

    format: int
    alpha: Annotated[Finite, AfterValidator(_in_float32)]
    shape: _Shape | None = None
    trial: _Trial | None
    control: _Trial
    answers: _BothAnswers
    settings: dict[str, Any]
    spec: dict[str, Any]
    study: str
    evaluated_on: dict[str, str]
    calibration: list[_Standard] | None = None


def read_provenance(path: Path) -> dict[str, Any]:
    """What an `expo.json`, or the one in a folder, holds.

    Raises:
        StudyError: no such file, or none that `export` wrote.
    """
    file, content, fault = path, {}, ""
    try:
        file = path / PROVENANCE if path.is_dir() else path
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("format", _FORMAT) != _FORMAT:
            fault = "another format"
        else:
            _Exported.model_validate(content)
    except ValidationError as faults:
        fault = _faults(faults)
    except (OSError, ValueError, RecursionError) as unreadable:
        said = unreadable.strerror if isinstance(unreadable, OSError) and unreadable.strerror else str(unreadable)
        fault = "no such file" if isinstance(unreadable, FileNotFoundError) else f"not readable ({said})"
    if fault:
        raise StudyError(
            where=str(file),
            found=fault,
            expected=f"an {PROVENANCE} that `expo-search export` of version {__version__} can have written",
            do="give an exported folder, or its file",
        )
    return dict(content)


def _faults(faults: ValidationError) -> str:
    """The first few, on one line; what is missing is named first."""
    missing = [str(error["loc"][-1]) for error in faults.errors() if error["type"] == "missing"]
    texts = ["a file without " + ", ".join(missing)] if missing else []
    for error in faults.errors():
        if error["type"] != "missing":
            place, expected = ".".join(map(str, error["loc"])) or "the file", wanted(error)
            message = own_text(error) if expected is None else f"not {expected}"
            texts.append(f"{place}: {message} (found {reprlib.repr(error['input'])})")
    return "; ".join(texts[:_FAULTS_MAX]) + ("; ..." if len(texts) > _FAULTS_MAX else "")


def _without_judge(spec: StudySpec) -> StudySpec:
    """A spec without the second judge, which has no part in the weights and their evaluation."""
    none = {"check_reward_model": None, "check_reward_revision": None}
    return spec.model_copy(update={"pair": spec.pair.model_copy(update=none)})


def text_hash(text: str) -> str:
    """16 hex digits of an answer's text: enough to see whether another one is the same."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def mergekit_recipe(origin: Origin) -> str:
    """The same model as mergekit's task arithmetic, base + weight * (aligned - base) with weight = 1 + alpha.

    With a shape, a filter for each layer or module has the weight of those whose name has it in it; all others follow.
    mergekit rounds in other places: its weights agree with ours up to the last bits of float32, not to the bit.
    """
    pair = origin.pair
    model = f"{_mergekit(pair.base)}+{_mergekit(pair.adapter)}" if pair.base and pair.adapter else None
    lines = [
        f"# {FORMULA} at alpha = {origin.alpha!r}",
        "merge_method: task_arithmetic",
        f"base_model: {json.dumps(_mergekit(pair.sft))}",
        "models:",
        f"  - model: {json.dumps(model or _mergekit(pair.aligned))}",
        "    parameters:",
        *_mergekit_weight(origin),
        "parameters:",
        "  normalize: false",
        "dtype: float32  # of the arithmetic",
    ]
    return "\n".join([*lines, *([f"out_dtype: {origin.out_dtype}"] if origin.out_dtype else [])]) + "\n"


def public(origin: Origin) -> Origin:
    """An origin without local paths: folders and files of this machine are named `./NAME`, which is no Hub id.

    A name has as many of the last parts of the path as tell the folders apart. Run where these relative paths exist,
    `reproduce` finds them.
    """
    pair, spec = origin.pair, origin.spec
    sources = pair.sources
    names = _short_names({s.path for s in sources.values() if not s.on_hub and s.revision == LOCAL})
    shown = {role: replace(s, id=names.get(s.path, s.id), path=Path(s.path.name)) for role, s in sources.items()}
    asked_as = {role: role for role in ("aligned", "adapter", "sft", "reward_model")}
    if pair.base and pair.adapter:  # the search was asked for the base as `aligned`
        shown["aligned"] = replace(shown["aligned"], id=f"{shown['base'].id}+{shown['adapter'].id}")
        asked_as["aligned"] = "base"
    ids = {field: shown[role].id for field, role in asked_as.items() if getattr(spec.pair, field) and role in shown}
    prompts = spec.prompts
    if _is_own_file(prompts.source):
        prompts = prompts.model_copy(update={"source": f"./{Path(prompts.source).name}"})
    known = origin.settings.flat()
    identities = {
        f"pair.{role}": str(known[f"pair.{role}"]).replace(f"{s.id}@", f"{shown[role].id}@", 1)
        for role, s in sources.items()
        if f"pair.{role}" in known
    }
    judges = tuple(shown.pop(f"reward_model_{i}") for i, _ in enumerate(pair.reward_models, 1))
    rewards = tuple(e.model_copy(update={"model": s.id}) for e, s in zip(spec.rewards, judges, strict=False))
    changed = {"pair": spec.pair.model_copy(update=ids), "prompts": prompts, "reward": _public_reward(spec.reward)}
    return replace(
        origin,
        pair=Pair(**shown, reward_models=judges),
        spec=spec.model_copy(update=changed | ({"rewards": rewards} if judges else {})),
        settings=Settings.from_flat(known | identities),
        verdict=replace(origin.verdict, again=""),
        storage=DEFAULT_STORAGE,
    )


def _short_names(paths: Iterable[Path]) -> dict[Path, str]:
    """Each path -> "./" and as many of its last parts as tell it from the others."""
    parts = {path: path.parts[1:] for path in paths}

    def name(path: Path) -> str:
        tails = (parts[path][-n:] for n in range(1, len(parts[path])))
        alone = (tail for tail in tails if sum(other[-len(tail) :] == tail for other in parts.values()) == 1)
        return "./" + "/".join(next(alone, parts[path][-1:]))

    return {path: name(path) for path in parts}


def _public_reward(reward: RewardSpec) -> RewardSpec:
    """Without folders of this machine and names of servers near it."""
    if reward.judge_url is not None and not is_here(reward.judge_url):
        return reward.model_copy(update={"judge_url": "http://localhost:8000/v1"})
    return reward if reward.scorer is None else reward.model_copy(update={"scorer": shortened(reward.scorer)})


def _is_own_file(source: str) -> bool:
    """Whether prompts come from a file of this machine's; the package's own are named as they are everywhere."""
    given = Path(source)
    return bool(given.suffix) and (given.is_absolute() or source.startswith(("~", "..")) or given.is_file())


def _mergekit_weight(origin: Origin) -> list[str]:
    if not origin.filters:
        return [f"      weight: {1 + origin.alpha!r}"]
    filters = [
        f"        - filter: {json.dumps(part)}\n          value: {1 + origin.alpha * factor!r}"
        for part, factor in origin.filters
    ]
    return ["      weight:", *filters, f"        - value: {1 + origin.alpha!r}"]


def _mergekit(source: Source) -> str:
    """A source as mergekit names it: a Hub id with its revision, or a path."""
    return f"{source.loadable}@{source.revision}" if source.on_hub else source.loadable


def _answers(stored: Sequence[Stored]) -> dict[str, Any]:
    """Rewards and hashes of answers by their position, without the texts."""
    return {
        "positions": [s.position for s in stored],
        "sha256": [text_hash(s.completion.text) for s in stored],
        "rewards": [s.reward for s in stored],
    }
