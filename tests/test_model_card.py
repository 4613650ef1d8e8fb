"""The model card: metadata that parses, text that holds, and names that inject nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fakes import make_evaluation
from huggingface_hub import ModelCard, metadata_load
from markdown_it import MarkdownIt
from twins import make_pair, read_all

from expo_search.config.presets import load_study
from expo_search.exporting.model_card import card, write_card
from expo_search.exporting.provenance import Origin, mergekit_recipe, public
from expo_search.inputs.source import Pair, Source
from expo_search.results.verdict import verdict
from expo_search.store.settings import Settings
from expo_search.text import markdown
from expo_search.weights.shape import Shape, alpha_of, shaped

EVIL = "<script>alert(1)</script> [x](http://evil) ![i](e) `c` | **b**\n# heading\n---\nlicense: mit\n\x1b[31m"


def make_origin(tmp_path: Path, **changes: Any) -> Origin:
    found = [
        make_evaluation(i, alpha, gain, 0.1) for i, (alpha, gain) in enumerate([(0.0, 0.0), (0.5, 0.4), (2.0, -3)])
    ]
    source = {role: Source(tmp_path, f"owner/{role}", "abc123", on_hub=True) for role in ("aligned", "sft", "rm")}
    spec = load_study(overrides={"pair": {"aligned": "a", "sft": "s", "reward_model": "r"}}, name="mine")
    origin = Origin(
        study="mine",
        spec=spec,
        settings=Settings.from_flat({"prompts.hash": "abc"}),
        pair=Pair(source["aligned"], source["sft"], source["rm"]),
        alpha=0.5,
        trial=found[1],
        control=found[0],
        evaluations=found,
        verdict=verdict(found),
        answers=[],
        control_answers=[],
        evaluated_on={"torch": "2"},
        out_dtype="bfloat16",
    )
    return replace(origin, **changes)


def metadata(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_the_metadata_names_both_models_and_how_they_were_merged(tmp_path: Path) -> None:
    found = metadata(card(make_origin(tmp_path)))
    assert found["base_model"] == ["owner/aligned", "owner/sft"]
    assert found["base_model_relation"] == "merge"
    assert found["library_name"] == "transformers"
    assert {"merge", "expo"} <= set(found["tags"])
    assert found["license"] == "other", "the sources name none"


def test_the_trials_have_their_gain_at_equal_length(tmp_path: Path) -> None:
    origin = make_origin(tmp_path)
    zero, half, two = origin.evaluations
    half = replace(half, length_controlled=replace(half.gain, mean=0.125))
    lines = card(replace(origin, evaluations=[zero, half, two])).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| trial | alpha |"))
    heads, dashes, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[start : start + 5])
    assert [row[heads.index("equal length")] for row in rows] == ["", "+0.1250", "-3.0000"]
    assert {len(row) for row in (heads, dashes, *rows)} == {len(heads)}
    assert any(line.startswith("Equal length: the gain") for line in lines)


@pytest.mark.parametrize("name", ["owner/model", EVIL, "null", "1.0", "a: b # c", "日本 👀"])
def test_the_hub_reads_the_metadata_as_it_was_meant(tmp_path: Path, name: str) -> None:
    origin = make_origin(tmp_path)
    aligned = replace(origin.pair.aligned, id=name)
    (tmp_path / "out").mkdir()
    write_card(replace(origin, pair=replace(origin.pair, aligned=aligned)), tmp_path / "out")
    expected = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "other",
        "base_model": [name, "owner/sft"],
        "base_model_relation": "merge",
        "tags": ["merge", "mergekit", "expo", "expo-search", "model-extrapolation"],
    }
    assert metadata_load(tmp_path / "out" / "README.md") == expected
    assert ModelCard.load(tmp_path / "out" / "README.md").data.to_dict() == expected


def test_the_metadata_of_a_rescaled_adapter_says_so(tmp_path: Path) -> None:
    origin = make_origin(tmp_path, as_adapter=True)
    origin = replace(origin, pair=replace(origin.pair, base=Source(tmp_path, "owner/base", "abc123", on_hub=True)))
    found = metadata(card(origin))
    assert (found["library_name"], found["base_model_relation"]) == ("peft", "adapter")
    assert found["base_model"] == ["owner/base"]


def test_a_licence_that_all_sources_share_is_the_models(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Theirs\n")
    text = card(make_origin(tmp_path))
    assert metadata(text)["license"] == "apache-2.0"
    assert "- owner/sft: apache-2.0" in text


@pytest.mark.parametrize(
    ("metadata_text", "shown", "of_all"),
    [
        ("license: mit", "mit", "mit"),
        ("license:\n- mit", "mit", "mit"),
        ("license: [mit, apache-2.0]", "mit, apache-2.0", "other"),
        ("license: other\nlicense_name: own-licence", "own-licence", "other"),
        ("license: cc_by", "cc\\_by", "other"),
        ("license:\nlanguage: en", "not stated", "other"),
        ("license: [", "not stated", "other"),
        ("- license", "not stated", "other"),
    ],
)
def test_a_licence_is_read_as_yaml(tmp_path: Path, metadata_text: str, shown: str, of_all: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{metadata_text}\n---\n# Theirs\n")
    text = card(make_origin(tmp_path))
    assert f"- owner/aligned: {shown}\n" in text
    assert metadata(text)["license"] == of_all


def test_sources_whose_folders_have_one_name_keep_their_licences_apart(tmp_path: Path) -> None:
    sources = []
    for stage, licence in (("sft", "mit"), ("dpo", "llama2")):
        folder = tmp_path / stage / "final"
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
        sources.append(Source(folder, str(folder), "local"))
    origin = make_origin(tmp_path)
    origin = replace(origin, pair=replace(origin.pair, sft=sources[0], aligned=sources[1]))
    text = card(origin)
    assert metadata(text)["license"] == "other"
    assert "- dpo/final: llama2\n- sft/final: mit" in text
    recipe = mergekit_recipe(public(origin))
    assert 'base_model: "./sft/final"' in recipe
    assert 'model: "./dpo/final"' in recipe


def test_folders_are_named_without_their_path_and_are_no_base_model(tmp_path: Path) -> None:
    local = Source(tmp_path / "secret" / "sft", str(tmp_path / "secret" / "sft"), "local")
    pair = replace(make_origin(tmp_path).pair, aligned=local, sft=local)
    text = card(make_origin(tmp_path, pair=pair))
    assert "base_model" not in metadata(text)
    assert "- sft: sft\n" in text
    assert "secret" not in text


def test_it_says_what_was_found_and_what_was_not(tmp_path: Path) -> None:
    text = card(make_origin(tmp_path))
    assert "alpha = 0.5" in text
    assert "| 1 | 0.5 | 1.4000 | +0.4000 | [+0.202, +0.598] | +0.4000 | 100 | 12 | 25% |  |" in text
    assert "was not confirmed on fresh prompts" in text
    assert "**Not evaluated.**" in card(make_origin(tmp_path, trial=None, alpha=0.7))
    other = card(make_origin(tmp_path, trial=make_evaluation(2, 2.0, -3, 0.1), alpha=2.0))
    assert "**not the one that the search recommends**, which is 0.5: gain -3.0000" in other
    assert "not the one" not in text


def test_it_says_whether_what_was_written_was_verified(tmp_path: Path) -> None:
    origin = make_origin(tmp_path)
    assert "- verified: no, what was written was not compared with the trial" in card(origin)
    assert "- verified: yes, loaded in a fresh engine: 8 of 9" in card(origin, verified="8 of 9")


def test_what_cannot_be_done_is_not_offered(tmp_path: Path) -> None:
    whole = card(make_origin(tmp_path))
    assert "reproduce DIR" in whole
    assert "with --verify" in whole
    never = card(make_origin(tmp_path, trial=None, alpha=0.7))
    assert "- verified: no, there is no trial to compare with" in never
    assert "reproduce" not in never
    assert "with --verify" not in card(make_origin(tmp_path, as_adapter=True))


def test_names_inject_no_markup_and_no_metadata(tmp_path: Path) -> None:
    evil = Source(tmp_path, EVIL, "local")
    spec = make_origin(tmp_path).spec
    spec = spec.model_copy(
        update={
            "prompts": spec.prompts.model_copy(update={"source": EVIL}),
            "pair": spec.pair.model_copy(update={"licence": EVIL, "stop_strings": (EVIL,)}),
        }
    )
    pair = Pair(evil, evil, evil)
    (tmp_path / "README.md").write_text(f"---\nlicense: {EVIL}\n---\n")
    text = card(make_origin(tmp_path, spec=spec, pair=pair, evaluated_on={"gpus": EVIL}))
    assert metadata(text)["license"] == "other"
    html = MarkdownIt("gfm-like", {"linkify": False}).render(text.split("---\n", 2)[2])
    assert "<script" not in html
    assert 'href="http' not in html
    assert html.count("<h1>") == 1
    assert html.count("<img") == 1, "the curve"
    assert "alert(1)" in html, "the text itself is there"
    assert "\x1b" not in text


def test_plain_text_is_one_line_of_what_was_given() -> None:
    assert markdown("HuggingFaceH4/zephyr-7b-beta") == "HuggingFaceH4/zephyr-7b-beta"
    assert markdown("a\n\n# b <i>") == r"a \# b \<i\>"


def test_the_picture_lies_beside_the_card(tmp_path: Path) -> None:
    write_card(make_origin(tmp_path), tmp_path)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "](curve.png)" in (tmp_path / "README.md").read_text()


def recipe_origin(tmp_path: Path, alpha: float) -> Origin:
    aligned, sft = make_pair(tmp_path / "pair", "llama-untied")
    source = {p: Source(p, str(p), "local") for p in (aligned, sft)}
    pair = Pair(source[aligned], source[sft], source[aligned])
    return make_origin(tmp_path, pair=pair, alpha=alpha)


@pytest.mark.parametrize("alpha", [0.7, -0.4, 8.0])
def test_the_recipe_is_task_arithmetic_with_weight_one_plus_alpha(tmp_path: Path, alpha: float) -> None:
    """mergekit's documented arithmetic, base + sum(weight * (model - base)), done in NumPy, gives theta(alpha)."""
    origin = recipe_origin(tmp_path, alpha)
    recipe = yaml.safe_load(mergekit_recipe(origin))
    assert (recipe["merge_method"], recipe["parameters"]) == ("task_arithmetic", {"normalize": False})
    base, (model,) = read_all(Path(recipe["base_model"])), recipe["models"]
    aligned = read_all(Path(model["model"]))
    for name, tensor in aligned.items():
        x, y = tensor.double().numpy(), base[name].double().numpy()
        np.testing.assert_allclose(
            y + model["parameters"]["weight"] * (x - y), x + alpha * (x - y), rtol=1e-12, atol=1e-9
        )


SHAPES = [None, Shape("depth", (1.2, 0.5), 2), Shape("attn-mlp", (1.5, -0.25), 2), Shape("blocks:2", (0.0, 1.5), 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mergekit_makes_the_same_weights_up_to_its_rounding(shape: Shape | None, tmp_path: Path) -> None:
    pytest.importorskip("mergekit", reason="mergekit is not installed (extra `dev`)")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    origin = recipe_origin(tmp_path, 0.7)
    if shape is not None:
        names = read_all(origin.pair.aligned.path)
        origin = replace(origin, alpha=shaped(0.7, shape), filters=shape.filters(names))
    config = MergeConfiguration.model_validate(yaml.safe_load(mergekit_recipe(origin)))
    run_merge(config, str(tmp_path / "merged"), MergeOptions(quiet=True, copy_tokenizer=False))
    theirs, a, s = (read_all(p) for p in (tmp_path / "merged", origin.pair.aligned.path, origin.pair.sft.path))
    assert theirs.keys() == a.keys()
    for name, tensor in theirs.items():
        assert tensor.dtype == torch.bfloat16
        wide = a[name].float()
        # float32 in another order, then the same rounding to 8 bits: now and then the neighbouring number
        alpha = alpha_of(origin.alpha, name)
        torch.testing.assert_close(tensor.float(), (wide - s[name].float()) * alpha + wide, rtol=2**-7, atol=1e-6)
