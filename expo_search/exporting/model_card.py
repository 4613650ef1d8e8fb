"""What is known about an exported model -> its model card: README.md with YAML metadata, and the curve as a picture.

Names and notes may come from files that are not ours: in the metadata YAML quotes them, in the text every character
that Markdown or HTML could read as markup is escaped. Folders are named without the paths to them, which
are private.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expo_search.bench.result import BenchResult
from expo_search.checkpoint.side_files import CARD, PROVENANCE
from expo_search.config.own_scorer import shortened
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.exporting.provenance import FORMULA, Origin, public
from expo_search.inputs.source import Source
from expo_search.results.bench_guardrails import not_measured
from expo_search.results.bench_table import bench_rows
from expo_search.results.legend import EQUAL_LENGTH
from expo_search.results.reward_models import MODEL_GAINS, ensemble_sentence, model_gain_lines
from expo_search.results.second_judge import check_sentence
from expo_search.text import markdown, one_line
from expo_search.version import __version__

PICTURE = "curve.png"
# as the Hub names what a task is of; another task goes by its own name
_DATA_SETS = {"ifeval": "google/IFEval", "gsm8k": "openai/gsm8k", "gsm8k_5shot": "openai/gsm8k"}
# licences by which the Hub lets one filter; any other is `other`, and the text says what the sources say
_HUB_LICENCES = {
    "apache-2.0", "mit", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma", "cc-by-4.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "bsd-3-clause", "openrail", "bigscience-openrail-m", "bigcode-openrail-m",
}  # fmt: skip


def write_card(origin: Origin, folder: Path, *, verified: str | None = None) -> None:
    """Write the card and its picture into an exported folder; `verified`: see `card`."""
    from expo_search.results.curve.static import curve_png

    (folder / PICTURE).write_bytes(curve_png(origin.evaluations, origin.verdict))
    (folder / CARD).write_text(card(origin, verified=verified), encoding="utf-8")


def card(origin: Origin, *, verified: str | None = None) -> str:
    """The card's text. Reads the licences that the sources' own cards name.

    `verified`: the result of `verify.verify`, if the written weights were compared with the trial in a fresh engine.
    """
    shown = public(origin)
    licences = _licences(origin, shown)
    sections = [
        _metadata(shown, licences),
        _what(shown),
        _why(shown),
        _trials(shown),
        *([_bench(shown)] if shown.compared else []),
        _how(shown, verified=verified),
        _limits(shown),
        _licence_text(shown, licences),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(origin: Origin, licences: Sequence[tuple[str, str | None]]) -> str:
    """The YAML block for the Hub. Without a source on the Hub it names no base model."""
    from huggingface_hub import ModelCardData

    pair = origin.pair
    bases = [pair.base] if origin.as_adapter else [pair.base or pair.aligned, pair.adapter, pair.sft]
    ids = list(dict.fromkeys(s.id for s in bases if s is not None and s.on_hub))
    named = {licence for _, licence in licences}
    licence = named.pop() if len(named) == 1 else None
    relation = "adapter" if origin.as_adapter else "merge"
    metadata = ModelCardData(
        library_name="peft" if origin.as_adapter else "transformers",
        pipeline_tag="text-generation",
        license=licence if licence in _HUB_LICENCES else "other",
        base_model=ids or None,
        base_model_relation=relation if ids else None,
        tags=["merge", "mergekit", "expo", "expo-search", "model-extrapolation"],
        **_model_index(origin),
    )
    return f"---\n{metadata.to_yaml()}\n---"


def _model_index(origin: Origin) -> dict[str, Any]:
    """What the Hub shows as results: the means of the benchmarks at this alpha, by task and metric."""
    from huggingface_hub import EvalResult

    # on one line: a line of dashes would end the metadata
    titles = {task.name: one_line(task.title) for task in origin.bench.tasks}
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=_DATA_SETS.get(c.task, one_line(c.task)),
            dataset_name=titles[c.task],
            metric_type=one_line(c.metric),
            metric_name=one_line(c.metric),
            metric_value=c.mean,
        )
        for c in origin.compared
    ]
    return {"model_name": f"{origin.study}, alpha = {origin.alpha:.6g}", "eval_results": results} if results else {}


def _bench(origin: Origin) -> str:
    """A table of the benchmarks at this alpha, and a sentence a task."""
    heads = ("task", "metric", "items", "alpha = 0", "at alpha", "difference", "95 % interval")
    rows = bench_rows(BenchResult(origin.bench.tasks, origin.compared))
    table = ["| " + " | ".join(heads) + " |", "| --- | --- |" + " ---: |" * (len(heads) - 2)]
    table += ["| " + " | ".join(markdown(row[head]) for head in heads) + " |" for row in rows if row["alpha"]]
    told = [f"- {markdown(c.sentence(sum(c.decides for c in origin.compared)))}" for c in origin.compared if c.decides]
    return "\n".join(["## Beyond the reward model", "", *table, "", *told])


def _what(origin: Origin) -> str:
    pair = origin.pair
    aligned = _name(pair.aligned)
    if pair.base and pair.adapter:
        aligned = f"{_name(pair.base)} with the LoRA adapter {_name(pair.adapter)} merged in"
    place = "beyond the aligned one" if origin.alpha > 0 else "before the aligned one"
    form = "This is an ordinary checkpoint: it loads in transformers and vLLM as any other."
    if origin.as_adapter:
        form = "This is the adapter, rescaled by 1 + alpha; merged into its base it is that model up to rounding."
    spread = "" if origin.shape is None else f", spread over the layers by {origin.shape}"
    return (
        f"# ExPO extrapolation, alpha = {origin.alpha:.6g}{spread}\n\n"
        f"The weights are `{FORMULA}` with alpha = {origin.alpha!r} (ExPO, ACL 2025, arXiv 2404.16792): a model "
        f"{place} on the line from its SFT model through it. Nothing was trained. {form}\n\n"
        f"- aligned: {aligned}\n- sft: {_name(pair.sft)}\n- dtype: {markdown(origin.out_dtype or 'that of aligned')}"
    )


def _why(origin: Origin) -> str:
    if origin.trial is None:
        near = sorted(origin.evaluations, key=lambda e: abs(e.alpha - origin.alpha))[:3]
        return (
            "## How good is it\n\n"
            f"**Not evaluated.** alpha = {origin.alpha:.6g} was exported by choice; the nearest alphas that were "
            f"evaluated are {', '.join(f'{e.alpha:.4g}' for e in near)}.\n\n{_picture(origin)}"
        )
    e, n = origin.trial, origin.trial.gain.n
    lines = ["## How good is it", origin.verdict.sentence()]
    if origin.shape is not None:
        lines.append(origin.shape_sentence)
    elif not origin.verdict.recommends(e):
        is_better = e.alpha in origin.verdict.better
        shown = " It is one of those that the search shows to be better than alpha = 0." if is_better else ""
        lines.append(
            f"This alpha, {e.alpha:.4g}, is **not the one that the search recommends**, which is "
            f"{origin.verdict.alpha:.4g}: gain {e.gain.mean:+.4f} against alpha = 0, 95 % interval "
            f"[{e.gain.low:+.4f}, {e.gain.high:+.4f}] of this alpha alone, on {n} prompts.{shown}"
        )
    lines += [markdown(check_sentence(check)) for check in origin.checks]
    if origin.calibration is not None:
        lines.append(markdown(ensemble_sentence(origin.calibration, origin.model_gains)))
    if origin.model_gains:
        lines += ["\n".join(model_gain_lines(origin.model_gains)), MODEL_GAINS]
    if e.broken:
        lines.append(f"**It breaks guardrails** of the search: {markdown(', '.join(e.broken))}.")
    if e.stopped_early:
        lines.append(f"Its trial was stopped early ({markdown(e.outcome)}), on {n} prompts.")
    return "\n\n".join([*lines, _picture(origin)])


def _picture(origin: Origin) -> str:
    return f"![Gain over alpha = 0 against alpha, {len(origin.evaluations)} trials]({PICTURE})"


def _trials(origin: Origin) -> str:
    heads = (
        "trial",
        "alpha",
        "mean reward",
        "gain over alpha = 0",
        "95 % interval",
        "equal length",
        "prompts",
        "tokens",
    )
    heading = f"| {' | '.join(heads)} | cut off | |"
    table = [heading, "|" + " ---: |" * (len(heads) + 1) + " --- |", *map(trial_row, origin.evaluations)]
    return "\n".join(["## Trials", "", *table, "", f"{EQUAL_LENGTH[0].upper()}{EQUAL_LENGTH[1:]}."])


def trial_row(e: Evaluation) -> str:
    """A row of the table of trials, in Markdown."""
    interval = f"[{e.gain.low:+.3f}, {e.gain.high:+.3f}]"
    equal = f"{e.length_controlled.mean:+.4f}"
    gain = ["0", "", ""] if e.trial == CONTROL else [f"{e.gain.mean:+.4f}", interval, equal]
    numbers = [str(e.trial), f"{e.alpha:.6g}", f"{e.reward.mean:.4f}", *gain, str(e.reward.n)]
    return "| " + " | ".join([*numbers, f"{e.mean_length:.0f}", f"{e.share_cut:.0%}", markdown(e.remark)]) + " |"


def _how(origin: Origin, *, verified: str | None) -> str:
    spec, sampling = origin.spec, origin.spec.sampling
    prompts, (rated_by, name) = spec.prompts.source.removeprefix("./"), origin.rated_by
    rows = {
        "prompts": f"{spec.prompts.n} of {prompts}, hash {origin.settings.prompts.hash}",
        "objective": spec.search.objective,
        rated_by: name,
        "sampling": ", ".join(f"{key} {value}" for key, value in sampling.model_dump().items()),
        "seed": spec.search.seed,
        "fingerprint of the weights in the engine": origin.trial.fingerprint if origin.trial else "not evaluated",
        "verified": f"yes, loaded in a fresh engine: {verified}" if verified else _not_verified(origin),
        "evaluated on": ", ".join(f"{key} {value}" for key, value in origin.evaluated_on.items()),
    }
    text = "\n".join(f"- {name}: {markdown(value)}" for name, value in rows.items())
    again = "; `expo-search reproduce DIR` evaluates this alpha again and compares" if origin.trial else ""
    same = f"`{PROVENANCE}` has all of it{again}."
    recipe = "" if origin.as_adapter else " `mergekit.yaml` makes the same weights, up to rounding, with mergekit."
    return f"## How it was found\n\n{text}\n\n{same}{recipe} Made with expo-search {__version__}."


def _not_verified(origin: Origin) -> str:
    if origin.trial is None:
        return "no, there is no trial to compare with"
    if origin.as_adapter:
        return "no, an adapter's sum with its base is rounded where it is made"
    return "no, what was written was not compared with the trial; expo-search export with --verify does so"


def _limits(origin: Origin) -> str:
    stops = origin.spec.pair.stop_strings
    points = [
        *(
            [
                "The gain is **likely the search's own reward model's alone**: another one, which the search never "
                "used, does not see it."
            ]
            if any(check.is_over_optimised for check in origin.checks)
            else []
        ),
        "A reward model's mean is not quality: reward models like long answers, and answers grow with alpha. Compare "
        "lengths, the gain at equal length and cut-off shares above.",
        "Only what the prompts ask for"
        + (" and the tasks above were" if origin.compared else " was")
        + " measured. Other knowledge, mathematics, safety and other languages were not; they can get worse while the "
        "mean reward rises.",
        *(
            ["The interval of a search's best alpha was not confirmed on fresh prompts (`expo-search confirm`)."]
            if origin.trial and origin.verdict.confirmed is None
            else []
        ),
        *(
            [
                f"The study's {markdown(not_measured([shortened(task) for task in origin.unmeasured]))} at this alpha "
                "(`expo-search bench`): whether it loses more there than they allow is not known."
            ]
            if origin.unmeasured
            else []
        ),
        *([f"Answers were also ended at these strings: {markdown(', '.join(map(repr, stops)))}."] if stops else []),
        "Faults of the two source models are its faults as well.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)


def _licence_text(origin: Origin, licences: Sequence[tuple[str, str | None]]) -> str:
    lines = [f"- {markdown(name)}: {markdown(licence or 'not stated')}" for name, licence in licences]
    note = f"\n\nThe preset notes: {markdown(origin.spec.pair.licence)}." if origin.spec.pair.licence else ""
    return "## Licence of the sources\n\n" + "\n".join(lines) + note


def _licences(origin: Origin, shown: Origin) -> list[tuple[str, str | None]]:
    """Each source, as `shown` names it, and the licence that the metadata of its own card names."""
    here, there = origin.pair.sources, shown.pair.sources
    roles = ["base" if origin.pair.base else "aligned", "adapter", "sft"]
    names = {here[role]: there[role] for role in roles if role in here}
    return [(_shown(named), _licence(source.path)) for source, named in names.items()]


def _licence(folder: Path) -> str | None:
    """None where there is no card, or its metadata cannot be read or names none; several are joined by commas."""
    from huggingface_hub import metadata_load

    try:
        metadata = metadata_load(folder / CARD) or {}
        licence = metadata.get("license")
        if licence == "other":
            licence = metadata.get("license_name") or licence
    except Exception:  # somebody else's file: not there, no YAML, another form
        return None
    return ", ".join(map(str, licence)) if isinstance(licence, list) else None if licence is None else str(licence)


def _name(source: Source) -> str:
    revision = f" at {markdown(source.revision)}" if source.on_hub else ""
    return markdown(_shown(source)) + revision


def _shown(source: Source) -> str:
    return source.id.removeprefix("./")
