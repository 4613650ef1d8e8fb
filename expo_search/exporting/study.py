"""A study -> the model at its best alpha: checked, written, described, and if asked for verified and uploaded."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from expo_search.bench.result import read_bench
from expo_search.checkpoint.folder import Checkpoint, open_checkpoint
from expo_search.checkpoint.lora import CONFIG, WEIGHTS, open_adapter, write_rescaled
from expo_search.checkpoint.side_files import PROVENANCE, RECIPE, copy_tokenizer, set_chat_template, set_stops
from expo_search.config.options import DEFAULT_STORAGE
from expo_search.config.spec import RewardSpec, StudySpec, stored_spec
from expo_search.config.stored_paths import found_from_here
from expo_search.dtypes import own_dtype
from expo_search.engine.machine import environment, measure_machine
from expo_search.engine.memory_plan import MemoryPlan, plan_memory
from expo_search.engine.needs import Needs
from expo_search.engine.start import ModelSpec, dtypes_of
from expo_search.engine.trial_time import Workload
from expo_search.errors import EngineDied, SettingsChanged, StudyError
from expo_search.evaluation.result import CONTROL, Evaluation
from expo_search.exporting.checkpoint import Format, export, n_bytes_of, writing
from expo_search.exporting.hub_upload import check_push, push
from expo_search.exporting.model_card import write_card
from expo_search.exporting.provenance import Origin, mergekit_recipe, provenance, public
from expo_search.exporting.target import check_target, refuse_sources
from expo_search.exporting.verify import dtype_to_write, engine_dtype, verify
from expo_search.exporting.wanted import Wanted, check_wanted, refuse
from expo_search.inputs.chat_template import load_tokenizer
from expo_search.inputs.pair import resolve_pair
from expo_search.results.bench_guardrails import losses, not_measured
from expo_search.results.reward_models import read_model_gains, study_calibration
from expo_search.results.second_judge import read_checks
from expo_search.results.shapes import shape_sentence
from expo_search.results.verdict import Verdict, refuse_zero, trial_at, verdict
from expo_search.search.confirm import confirmations
from expo_search.search.loop import evaluations
from expo_search.search.shapes import Beginning, Shapes
from expo_search.session.settings import computing_as, sources_settings
from expo_search.session.shapes import stored_shapes
from expo_search.session.working import Working, unseen
from expo_search.store.attributes import StudyAttributes, stored_attributes
from expo_search.store.bench_store import BenchStore
from expo_search.store.settings import Settings, compare_settings
from expo_search.store.study_store import Store
from expo_search.text import shown, size
from expo_search.weights.formula import is_alpha
from expo_search.weights.shape import shape_of

_PUT_BACK = "put back what was searched; the search command takes the new place of a folder that was moved"


def export_study(
    storage: str,
    name: str,
    wanted: Wanted,
    say: Callable[[str], None],
    on_bytes: Callable[[int, int], None],
    working: Working = unseen,
    give_up: Callable[[EngineDied], None] | None = None,
) -> float:
    """Write the model at an alpha of a study; return that alpha.

    Args:
        on_bytes: gets bytes written, and bytes in all. working: is entered for what takes long beside the writing.
        give_up: see `VllmModel`.

    Raises:
        StudyError: the verdict is to keep alpha = 0 and no alpha is given; an alpha that was not evaluated (without
            `force`); options that do not go together; the target; the Hub.
        SettingsChanged: the checkpoints are not those that were searched.
        CheckpointError: weights that are not finite; with `verify`, weights or answers other than the trial's.
        EngineError: with `verify`, an engine that does not fit or does not start.
    """
    check_wanted(wanted)
    refuse_zero(wanted.alpha)  # also with `force`
    if wanted.push_to is not None:
        check_push(wanted.push_to)
    with working("checking the study and its checkpoints") as doing:
        origin, aligned, sft = _origin(storage, name, wanted, say, doing)
    refuse_sources(wanted.out, [source.path for source in origin.pair.sources.values()])
    _check_options(wanted, origin, aligned)
    if origin.dtype != wanted.dtype:
        say(f"written in {origin.dtype}, in which the trials were evaluated")
    if wanted.verify:
        _verifying_engine(origin, aligned.path, (aligned, sft))  # what cannot fit is refused before minutes of writing
    done, total = 0, n_bytes_of(aligned, origin.dtype)

    def on_piece(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        on_bytes(done, total)

    def finish(folder: Path) -> None:
        _set_stops_and_template(origin, folder)
        verified = None
        if wanted.verify:
            with working("verifying what was written in a fresh engine"):
                verified = _verify(origin, folder, (aligned, sft), say, give_up)
            say(f"verified: {verified}")
        _describe(origin, folder, verified=verified)

    if wanted.as_adapter:
        _export_adapter(origin, wanted)
    else:
        form = Format(origin.dtype, wanted.max_shard_bytes, origin.spec.trust_remote_code)
        export(aligned, sft, origin.alpha, wanted.out, form, force=wanted.force, finish=finish, on_bytes=on_piece)
    if wanted.push_to is not None:
        texts = _public_texts(origin, wanted.out)
        say(f"uploading {size(sum(file.stat().st_size for file in wanted.out.iterdir()))} to {wanted.push_to}")
        with working("uploading") as doing:
            url = push(wanted.out, wanted.push_to, private=wanted.private, instead=texts, doing=doing)
        say(f"uploaded: {url}")
    spread = "" if origin.shape is None else f", spread by {origin.shape},"
    say(f"alpha = {origin.alpha:.6g}{spread} of study {name} written to {wanted.out}, {_how_sure(origin, wanted)}")
    if origin.unmeasured:
        say(f"its {not_measured(origin.unmeasured)} at this alpha: expo-search bench measures what it loses there")
    return origin.alpha


def _origin(
    storage: str, name: str, wanted: Wanted, say: Callable[[str], None], doing: Callable[[str], None]
) -> tuple[Origin, Checkpoint, Checkpoint]:
    """What is known about the alpha that is wanted, and the two checkpoints, which are those that were searched."""
    kept = stored_attributes(storage, name) or StudyAttributes()
    settings = kept.settings or Settings()
    spec = stored_spec(kept.spec, name=name, trust_remote_code=wanted.trust_remote_code)
    spec = found_from_here(spec, kept.folder)
    store = Store(storage, name, read_only=True)
    finished = evaluations(store.study)
    bench = read_bench(BenchStore(store))
    lost, confirmed = losses(bench, spec.guardrails.bench), confirmations(store)
    judged = verdict(finished, confirmed, search=spec.search, published_alpha=spec.pair.published_alpha, lost=lost)
    checks = read_checks(store, finished, confirmed, judged.objective)
    alpha, trial = _choose(finished, judged, wanted, name)
    found = _shapes(storage, name, wanted, judged, spec)
    if found is not None and found.best is not None:
        alpha, trial = found.best.alpha, found.best
    control = next((e for e in finished if e.trial == CONTROL), None)
    if control is None:
        raise StudyError(
            where=f"study {name}", found="no trial at alpha = 0", expected="a study to compare with", do="search first"
        )
    rated, trust = not spec.reward.rates_itself, spec.trust_remote_code
    pair = resolve_pair(
        spec.pair, rewards=spec.rewards, trust_remote_code=trust, say=say, doing=doing, with_reward=rated
    )
    aligned, sft = open_checkpoint(pair.aligned.path, role="aligned"), open_checkpoint(pair.sft.path, role="sft")
    compare_settings(settings, sources_settings(pair, aligned, sft), name=name, do=_PUT_BACK)
    prompts, answers = store.prompts("search"), store
    if found is not None:
        answers = Store(storage, found.beginning.name, read_only=True)
    shape, calibration = shape_of(alpha), study_calibration(kept)
    fresh = None if trial is None else confirmed.get(trial.trial)
    gains = read_model_gains(store, calibration, trial, fresh) if found is None else []
    _check_contents(kept.contents or {}, name, aligned=aligned, sft=sft)
    dtype = wanted.dtype
    if dtype is None and not wanted.as_adapter:
        dtype = dtype_to_write(spec.engine.dtype, aligned.config, aligned.dtypes)
    origin = Origin(
        study=name,
        spec=spec,
        settings=settings,
        pair=pair,
        alpha=alpha,
        trial=trial,
        control=control,
        evaluations=finished,
        verdict=judged,
        # what was answered beyond the look at which the trial ended has no reward
        answers=answers.completions(trial.trial, "search", prompts[: trial.gain.n]) if trial else [],
        control_answers=store.completions(CONTROL, "search", prompts),
        evaluated_on=kept.environment or environment(),
        dtype=dtype,
        out_dtype=dtype or own_dtype(aligned.config),
        storage=storage,
        as_adapter=wanted.as_adapter,
        bench=bench,
        filters=[] if shape is None else shape.filters(aligned.tensors),
        shape_sentence="" if found is None else shape_sentence(found),
        is_forced=found is not None and not found.is_better,
        checks=[c for c in checks if found is None and trial is not None and c.trial == trial.trial],
        calibration=calibration,
        model_gains=gains,
    )
    store.close()
    if answers is not store:
        answers.close()
    return origin, aligned, sft


def _shapes(storage: str, name: str, wanted: Wanted, judged: Verdict, spec: StudySpec) -> Shapes | None:
    """The search for the shape that is wanted; None where none is.

    Raises:
        StudyError: it was not searched from the recommended alpha, or none is shown to be better than that (without
            `force`).
    """
    if wanted.shape is None:
        return None
    assert judged.recommended is not None, "_choose"
    at = "" if storage == DEFAULT_STORAGE else f" --storage {shlex.quote(shown(storage))}"
    start = Beginning(name, judged.recommended.trial, judged.alpha, wanted.shape, n_layers=0)
    found = stored_shapes(storage, start, spec.search.objective)
    if found.best is None or not (found.is_better or wanted.force):
        raise StudyError(
            where=f"--shape {wanted.shape} of study {name}",
            found=shape_sentence(found),
            expected="a shape that is shown to be better than one alpha for all weights",
            do=f"search for one: expo-search shape {shlex.quote(name)} --shape {wanted.shape} --confirm N{at}"
            if found.best is None
            else "export without --shape, or give --force to export it all the same",
        )
    return found


def _check_contents(stored: Mapping[str, Any], name: str, **checkpoints: Checkpoint) -> None:
    """Check that the files are those that the engine last loaded: by their times, or if these differ by their bytes.

    Raises:
        SettingsChanged: other bytes.
    """
    for role, checkpoint in checkpoints.items():
        then = stored.get(role)
        if then is None or then["stamps"] == checkpoint.stamps or then["sha256"] == checkpoint.content_hash():
            continue
        raise SettingsChanged(
            where=f"study {name}",
            found=f"other weights in {checkpoint.path} than those that were evaluated",
            expected=f"the {role} checkpoint of then",
            do=_PUT_BACK,
        )


def _choose(finished: list[Evaluation], judged: Verdict, wanted: Wanted, name: str) -> tuple[float, Evaluation | None]:
    """The alpha to export and its trial, None where it was not evaluated."""
    if wanted.alpha is None:
        if judged.recommended is None:
            raise StudyError(
                where=f"study {name}",
                found=judged.sentence(),
                expected="a gain to export",
                do="give --alpha to export it all the same" + ("" if wanted.shape is None else ", without --shape"),
            )
        return judged.alpha, judged.recommended
    if not is_alpha(wanted.alpha):
        raise StudyError(
            where="--alpha", found=str(wanted.alpha), expected="a number that is finite in float32", do="give another"
        )
    try:
        trial = trial_at(finished, wanted.alpha, name)
    except StudyError as fault:
        if wanted.force and finished:
            return wanted.alpha, None
        do = f"{fault.do}, or --force to export it without an evaluation" if finished else fault.do
        raise StudyError(where=fault.where, found=fault.found, expected=fault.expected, do=do) from None
    return trial.alpha, trial


def _check_options(wanted: Wanted, origin: Origin, aligned: Checkpoint) -> None:
    if wanted.as_adapter and (origin.pair.adapter is None or origin.spec.pair.sft is not None):
        given = "a pair of whole checkpoints" if origin.pair.adapter is None else "an SFT model beside base and adapter"
        refuse("--as-adapter", given, "a base and its adapter", "export a checkpoint")
    if wanted.verify and origin.trial is None:
        refuse(
            "--verify", f"alpha {origin.alpha:g}, which was not evaluated", "a trial to compare with", "leave it out"
        )
    if wanted.verify and engine_dtype(origin.spec.engine.dtype, aligned.config, origin.dtype, aligned.dtypes) is None:
        refuse(
            f"--verify with --dtype {origin.dtype}", "another rounding than the trial's", "the trial's weights",
            "leave one of the two out",
        )  # fmt: skip


def _export_adapter(origin: Origin, wanted: Wanted) -> None:
    base, adapter = origin.pair.base, origin.pair.adapter
    assert base is not None, "_check_options"
    assert adapter is not None, "_check_options"
    lora = open_adapter(adapter.path)
    n_bytes = sum((lora.path / name).stat().st_size for name in (CONFIG, WEIGHTS))
    check_target(wanted.out, n_bytes, (base.path, adapter.path), force=wanted.force)
    with writing(wanted.out, force=wanted.force) as folder:
        write_rescaled(lora, origin.alpha, folder, base=base.loadable, revision=base.revision if base.on_hub else None)
        copy_tokenizer(origin.pair.aligned.path, folder)  # the one that was evaluated, also where it is the base's
        if origin.spec.pair.chat_template is not None:
            set_chat_template(folder, origin.spec.pair.chat_template)
        _describe(origin, folder, verified=None)


def _how_sure(origin: Origin, wanted: Wanted) -> str:
    if wanted.verify:
        return "verified"
    may_be = origin.trial is not None and not wanted.as_adapter
    return "not verified" + (": --verify proves that it is what was evaluated" if may_be else "")


def _set_stops_and_template(origin: Origin, folder: Path) -> None:
    """Stops and template as they were in the search."""
    pair, spec = origin.pair, origin.spec
    tokenizer = load_tokenizer(
        str(pair.aligned.path), trust_remote_code=spec.trust_remote_code, chat_template=spec.pair.chat_template
    )
    own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    set_stops(folder, [*own, *spec.pair.stop_token_ids])
    if spec.pair.chat_template is not None:
        set_chat_template(folder, spec.pair.chat_template)


def _describe(origin: Origin, folder: Path, *, verified: str | None) -> None:
    """Card, provenance, recipe, which say whether the weights were compared with the trial's."""
    if not origin.as_adapter:
        (folder / RECIPE).write_text(mergekit_recipe(origin), encoding="utf-8")
    write_card(origin, folder, verified=verified)
    files = sorted({PROVENANCE, *(file.name for file in folder.iterdir())})  # all that `--force` may remove
    content = provenance(origin) | {"verified": verified is not None, "files": files}
    (folder / PROVENANCE).write_text(_as_json(content), encoding="utf-8")


def _public_texts(origin: Origin, folder: Path) -> dict[str, str]:
    """Texts to upload in the place of files that name paths of this machine."""
    told = public(origin)
    written = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    kept = {key: written[key] for key in ("made_at", "verified", "files")}
    texts = {PROVENANCE: _as_json(provenance(told) | kept)} | _without_origin(folder)
    if not origin.as_adapter:
        return texts | {RECIPE: mergekit_recipe(told)}
    assert told.pair.base is not None, "_check_options"
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return texts | {CONFIG: _as_json(config | {"base_model_name_or_path": told.pair.base.loadable})}


def _without_origin(folder: Path) -> dict[str, str]:
    """Texts of the configs in which transformers noted where it once loaded their source from."""

    def told(table: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in table.items() if key not in ("_name_or_path", "name_or_path")}

    texts = {}
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        written = file.read_text(encoding="utf-8") if file.is_file() else "{}"
        content = json.loads(written, object_hook=told)
        if content != json.loads(written):
            texts[file.name] = json.dumps(content, indent=2) + "\n"
    return texts


def _verify(
    origin: Origin,
    folder: Path,
    pair: tuple[Checkpoint, Checkpoint],
    say: Callable[[str], None],
    give_up: Callable[[EngineDied], None] | None,
) -> str:
    assert origin.trial is not None, "_check_options"
    model, plan = _verifying_engine(origin, folder, pair)
    say(plan.sentence())
    return verify(folder, model, origin.trial.fingerprint, origin.answers, say, give_up)


def _verifying_engine(
    origin: Origin, folder: Path, pair: tuple[Checkpoint, Checkpoint]
) -> tuple[ModelSpec, MemoryPlan]:
    """The engine that checks a written checkpoint, and its memory, planned as a search's, without a reward model.

    Raises:
        EngineError: it does not fit.
    """
    spec, (aligned, sft) = computing_as(origin.spec, origin.settings), pair
    written = open_checkpoint(folder, role="aligned")
    dtype = engine_dtype(spec.engine.dtype, aligned.config, origin.dtype, aligned.dtypes)
    engine = spec.engine.model_copy(update={"dtype": dtype})
    # an engine wants a pair of different checkpoints; near alpha = -1 the one written is sft itself
    other = sft if origin.alpha > -0.5 else aligned
    needs = Needs.of(written, other, None, dtypes_of(engine, RewardSpec(), written))
    work = Workload(n_prompts=spec.prompts.n, max_tokens=spec.sampling.max_tokens)
    plan = plan_memory(needs, engine, measure_machine(), work)
    model = ModelSpec(
        aligned=folder,
        sft=other.path,
        sampling=spec.sampling,
        engine=engine,
        seed=spec.search.seed,
        trust_remote_code=spec.trust_remote_code,
        stop_strings=spec.pair.stop_strings,
    )
    return model.planned(plan), plan


def _as_json(content: Mapping[str, Any]) -> str:
    """Standard JSON, which has no infinity: the end of an interval that has none is null."""

    def proper(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: proper(v) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return [proper(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(proper(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
