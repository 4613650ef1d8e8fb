"""expo-search: find the alpha of an ExPO extrapolation, on one engine that never reloads.

theta(alpha) = theta_aligned + alpha * (theta_aligned - theta_sft)
("Model Extrapolation Expedites Alignment", ACL 2025, equation 2).

The flow is the layout, one folder a stage: config -> inputs -> engine -> evaluation -> search -> results -> exporting.
`import expo_search as es` is enough for everything in `__all__`, and loads neither torch nor vllm.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from expo_search.version import __version__

if TYPE_CHECKING:
    from expo_search.api import Session, export, open_session, open_study
    from expo_search.bench.result import BenchResult
    from expo_search.config.presets import load_study
    from expo_search.config.spec import StudySpec
    from expo_search.contracts import Completion, Model, PairwiseScorer, Prompt, Scorer, Switch
    from expo_search.errors import ExpoError
    from expo_search.evaluation.compare import Comparison
    from expo_search.evaluation.result import Evaluation
    from expo_search.results.study_results import StudyResult
    from expo_search.results.verdict import Verdict
    from expo_search.search.budget import Budget
    from expo_search.search.confirm import Confirmation
    from expo_search.search.expo_sampler import ExpoSampler, record_gain
    from expo_search.stats.paired import Estimate

_HOMES = {  # public name -> its module, loaded when it is first asked for
    "BenchResult": "bench.result",
    "Budget": "search.budget",
    "Comparison": "evaluation.compare",
    "Completion": "contracts",
    "Confirmation": "search.confirm",
    "Estimate": "stats.paired",
    "Evaluation": "evaluation.result",
    "ExpoError": "errors",
    "ExpoSampler": "search.expo_sampler",
    "Model": "contracts",
    "PairwiseScorer": "contracts",
    "Prompt": "contracts",
    "Scorer": "contracts",
    "Session": "api",
    "StudyResult": "results.study_results",
    "StudySpec": "config.spec",
    "Switch": "contracts",
    "Verdict": "results.verdict",
    "export": "api",
    "load_study": "config.presets",
    "open_session": "api",
    "open_study": "api",
    "record_gain": "search.expo_sampler",
}

__all__ = [
    "BenchResult",
    "Budget",
    "Comparison",
    "Completion",
    "Confirmation",
    "Estimate",
    "Evaluation",
    "ExpoError",
    "ExpoSampler",
    "Model",
    "PairwiseScorer",
    "Prompt",
    "Scorer",
    "Session",
    "StudyResult",
    "StudySpec",
    "Switch",
    "Verdict",
    "__version__",
    "export",
    "load_study",
    "open_session",
    "open_study",
    "record_gain",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
