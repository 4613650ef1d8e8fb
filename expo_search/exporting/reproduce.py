"""An `expo.json` -> the exported alpha evaluated again from its sources, compared with its search's result.

The whole search is not repeated: alpha = 0 and the exported alpha answer the search's prompts with the search's seeds,
in a database of their own that is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from expo_search.config.options import MIN_PROMPTS
from expo_search.config.spec import check_consent, stored_spec
from expo_search.contracts import Watcher
from expo_search.engine.machine import differences, environment
from expo_search.errors import EngineDied, StudyError
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.exporting.provenance import text_hash
from expo_search.session.preflight import check
from expo_search.session.running import start
from expo_search.session.settings import computing_as
from expo_search.session.working import Working, unseen
from expo_search.store.attributes import StudyAttributes
from expo_search.store.settings import Settings, compare_settings
from expo_search.store.study_store import Store
from expo_search.weights.shape import Shape, shaped

_AS_MADE = "give what it was made with: sources, prompts and what rates the answers, where they were"
Grade = Literal["identical", "same weights, other environment", "different"]


@dataclass(frozen=True)
class Reproduction:
    """Result of evaluating an exported alpha again.

    Attributes:
        stored, again: the exported trial's numbers: those in `expo.json`, and the new ones.
        control: the new numbers of alpha = 0.
        same_weights: whether the fingerprints at both alphas are those in `expo.json`.
        n_same, n: answers of the exported alpha that are the same, letter for letter, and answers in all.
        same_rewards: whether every reward at both alphas is the same number.
        differences: of the environment, one line each.
    """

    stored: Mapping[str, Any]
    again: Evaluation
    control: Evaluation
    same_weights: bool
    n_same: int
    n: int
    same_rewards: bool
    differences: tuple[str, ...]

    @property
    def grade(self) -> Grade:
        """How well it agrees: by the fingerprints of the weights first, then by every reward."""
        if not self.same_weights:
            return "different"
        return "identical" if self.same_rewards else "same weights, other environment"

    @property
    def within(self) -> bool:
        """Whether the new gain (of the study's objective) lies in the 95 % interval of the stored one."""
        low, high = self.stored["gain_95"]  # None: without an end
        gain = self.again.gain.mean
        return bool((low is None or low <= gain) and (high is None or gain <= high))

    def report(self) -> str:
        """The comparison as text of several lines."""
        then, now = self.stored["gain"], self.again.gain.mean
        lines = [f"{self.grade}: alpha = {self.again.alpha:.6g}, gain {then:+.4f} then, {now:+.4f} now"]
        lines.append(f"  weights: {'the same' if self.same_weights else 'other ones'} ({self.again.fingerprint})")
        fewer = self.again.gain.n < self.stored["n_prompts"]
        first = f", on the first {self.again.gain.n} of {self.stored['n_prompts']} prompts" if fewer else ""
        lines.append(f"  answers: {self.n_same} of {self.n} are the same{first}")
        if self.grade != "identical":
            lines.append(f"  the gain of now is {'within' if self.within else 'outside'} the 95 % interval of then")
            lines += [f"  environment, {line}" for line in self.differences or ("no difference that is recorded",)]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The comparison as an object for `--json`."""
        return {
            "grade": self.grade,
            "alpha": self.again.alpha,
            "gain": {"then": self.stored["gain"], "now": self.again.gain.mean},
            "difference": {"then": self.stored["difference"], "now": self.again.difference.mean},
            "reward": {"then": self.stored["reward"], "now": self.again.reward.mean},
            "fingerprint": {"then": self.stored["fingerprint"], "now": self.again.fingerprint},
            "prompts": {"then": self.stored["n_prompts"], "now": self.again.gain.n},
            "answers": {"same": self.n_same, "of": self.n},
            "within_interval": self.within,
            "environment": list(self.differences),
        }


def reproduce(
    exported: Mapping[str, Any],
    watcher: Watcher,
    say: Callable[[str], None],
    *,
    trust_remote_code: bool,
    n_prompts: int | None = None,
    working: Working = unseen,
    give_up: Callable[[EngineDied], None] | None = None,
) -> Reproduction:
    """Evaluate the alpha of an `expo.json` again, and alpha = 0, in a new engine, and compare.

    Args:
        exported: the file's content, as `read_provenance` gives it.
        n_prompts: the first so many of the trial's alone; see `check_n_prompts`.
        working: is entered, with what is being done, for what takes long before the first answer; see `working`.
        give_up: see `VllmModel`.

    Raises:
        StudyError: its alpha was never evaluated.
        SettingsChanged: sources, prompts or reward model are other ones; names what differs.
        ExpoError: whatever a search may raise.
    """
    stored = exported["trial"]
    if stored is None:
        raise StudyError(
            where=f"alpha {exported['alpha']}",
            found="an alpha that was never evaluated",
            expected="an evaluation to repeat",
            do="search with it first",
        )
    settings = Settings.from_flat(exported["settings"])
    spec = stored_spec(exported["spec"], name=str(exported["study"]), trust_remote_code=trust_remote_code)
    check_consent(spec, f"study {exported['study']} in expo.json")
    spec = computing_as(spec, settings)
    with TemporaryDirectory(prefix="expo-search-") as folder:
        with working("checking prompts, checkpoints and settings") as doing:
            checked = check(spec, f"sqlite:///{Path(folder) / 'again.db'}", say, doing=doing, do=_AS_MADE)
        compare_settings(
            settings,
            checked.settings,
            name=f"{exported['study']} in expo.json",
            do=_AS_MADE,
        )
        with working("starting vLLM and its canary, loading the reward model"):
            running = start(checked, say, give_up)
        try:
            # by the rewards of then: a part of the prompts would have others
            running.store.keep(StudyAttributes(calibration=exported.get("calibration")))
            objective = running.objective(watcher, checked.search_prompts[:n_prompts])
            control = objective.evaluate(CONTROL, 0.0)
            # as many prompts at once as in the search: which ones share a batch can change an engine's rounding
            n_most = min(stored["n_prompts"], n_prompts or stored["n_prompts"])
            shape = None if exported.get("shape") is None else Shape.from_json(exported["shape"])
            again = objective.evaluate(stored["trial"], shaped(stored["alpha"], shape), n_most=n_most)
            return _compare(exported, running.store, control, again)
        finally:
            running.close()


def check_n_prompts(exported: Mapping[str, Any], n: int | None) -> None:
    """Check how many prompts are wanted against how many the trial saw.

    Raises:
        StudyError: fewer than `MIN_PROMPTS`, or more than it saw.
    """
    stored = exported["trial"]
    if n is not None and stored is not None and not MIN_PROMPTS <= n <= stored["n_prompts"]:
        raise StudyError(
            where="--n-prompts",
            found=str(n),
            expected=f"{MIN_PROMPTS} to {stored['n_prompts']}, which the trial saw",
            do="give another number, or leave it out",
        )


def _compare(exported: Mapping[str, Any], store: Store, control: Evaluation, again: Evaluation) -> Reproduction:
    prompts = store.prompts("search")
    evaluated = {"trial": again, "control": control}
    now = {
        role: {s.position: s for s in store.completions(e.trial, "search", prompts)} for role, e in evaluated.items()
    }
    n_same, same_rewards, n = 0, True, 0
    for role, answers in exported["answers"].items():
        every = zip(answers["positions"], answers["sha256"], answers["rewards"], strict=True)
        # files of earlier versions have answers beyond the look at which the trial ended, too
        rows = [row for row in every if row[0] < evaluated[role].gain.n]
        same_rewards &= all(p in now[role] and now[role][p].reward == reward for p, _, reward in rows)
        if role == "trial":
            n = len(rows)
            n_same = sum(p in now[role] and text_hash(now[role][p].completion.text) == h for p, h, _ in rows)
    return Reproduction(
        stored=exported["trial"],
        again=again,
        control=control,
        same_weights=(again.fingerprint, control.fingerprint)
        == (exported["trial"]["fingerprint"], exported["control"]["fingerprint"]),
        n_same=n_same,
        n=n,
        same_rewards=same_rewards,
        differences=tuple(differences(exported["evaluated_on"], environment())),
    )
