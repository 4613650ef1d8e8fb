"""Parts -> checkpoints: merges against arithmetic done by hand, and what is left behind when they fail."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from twins import make_pair, read_all

from expo_search.checkpoint import atomic_folder, build, lora
from expo_search.checkpoint.build import dequantise_gguf, merge_adapter, merge_reward_adapter
from expo_search.checkpoint.folder import Checkpoint, open_checkpoint
from expo_search.checkpoint.lora import open_adapter
from expo_search.checkpoint.side_files import TOKENIZER_FILES
from expo_search.config.presets import load_study
from expo_search.config.spec import PairSpec
from expo_search.errors import PairError
from expo_search.folders import build_once
from expo_search.inputs.pair import pinned, resolve_pair
from expo_search.inputs.source import Pair, Source

LAYERS = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Three layers of one 2 x 2 weight each; entries that bfloat16 holds exactly."""
    folder = tmp_path / "base"
    folder.mkdir()
    weights = {name: torch.full((2, 2), float(i), dtype=torch.bfloat16) for i, name in enumerate(LAYERS)}
    save_file(weights, folder / "model.safetensors")
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3, "pad_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 0, "content": "<none>"}]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<end>"}))
    return folder


def write_adapter(folder: Path, *, head: bool = False, peft_type: str = "LORA", a_columns: int = 2) -> Path:
    """Rank 1, lora_alpha 4 on layer 1: the merge adds 4 b a, with b = (1, 2) and a = (1, 0)."""
    folder.mkdir()
    prefix = f"base_model.model.{LAYERS[1].removesuffix('.weight')}"
    a = torch.zeros(1, a_columns)
    a[0, 0] = 1.0
    factors = {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": torch.tensor([[1.0], [2.0]])}
    if head:
        factors["base_model.model.score.weight"] = torch.tensor([[0.5, -0.5]])
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": peft_type, "r": 1, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def write_lora(folder: Path, base: Path, *, rank: int = 4, **config: Any) -> Path:
    """A random adapter for the first layer's query projection of a whole base, in PEFT's format."""
    folder.mkdir()
    name = "model.layers.0.self_attn.q_proj"
    rows, columns = open_checkpoint(base, role="base").tensors[f"{name}.weight"].shape
    random = torch.Generator().manual_seed(5)
    factors = {"A": torch.randn(rank, columns, generator=random), "B": torch.randn(rows, rank, generator=random)}
    prefix = f"base_model.model.{name}.lora_"
    save_file({f"{prefix}{k}.weight": f * 0.2 for k, f in factors.items()}, folder / "adapter_model.safetensors")
    plain = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))
    return folder


def test_a_merge_adds_the_scaled_product_to_its_layer_only(base: Path, tmp_path: Path) -> None:
    merge_adapter(base, write_adapter(tmp_path / "adapter"), tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert merged[LAYERS[1]].tolist() == [[1.0 + 4.0, 1.0], [1.0 + 8.0, 1.0]]
    assert merged[LAYERS[0]].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}


def test_a_merge_of_the_same_parts_gives_the_same_bytes(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    for name in ("first", "second"):
        merge_adapter(base, adapter, tmp_path / name)
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("first", "second"))
    assert [(f.name, f.read_bytes()) for f in first] == [(f.name, f.read_bytes()) for f in second]


def test_a_reward_model_has_the_head_its_layers_its_template_and_padding_of_its_own(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", head=True)
    (adapter / "layers.json").write_text('{"num_hidden_layers": 2}')
    (adapter / "chat_template.jinja").write_text("its own")
    (adapter / "trained_on.txt").write_text("ab" * 32)
    merge_reward_adapter(base, adapter, tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == {LAYERS[0], LAYERS[1], "score.weight"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert (config["num_hidden_layers"], config["pad_token_id"], len(config["id2label"])) == (2, 0, 1)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["pad_token"] == "<none>"
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "its own"
    assert (tmp_path / "out" / "trained_on.txt").read_text() == "ab" * 32


@pytest.mark.parametrize("fault", [{"head": True}, {"peft_type": "IA3"}, {"a_columns": 3}])
def test_an_adapter_that_does_not_fit_is_refused_and_leaves_nothing(
    base: Path, tmp_path: Path, fault: dict[str, Any]
) -> None:
    adapter = write_adapter(tmp_path / "adapter", **fault)
    with pytest.raises(PairError, match="adapter"):
        merge_adapter(base, adapter, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"use_dora": True}, "LORA with use_dora = true; expected plain LoRA"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, 'bias = "all"'),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights = "pissa"'),
        ({"init_lora_weights": "lora_ga"}, 'init_lora_weights = "lora_ga"'),
        ({"init_lora_weights": 2}, "init_lora_weights = 2"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"use_rslora": "no"}, 'use_rslora = "no"'),
        ({"kasa_config": {"beta": 1e-4}}, 'LORA with kasa_config = {"beta": 0.0001}; expected plain LoRA'),
        ({"use_next": True}, "LORA with use_next = true (a key that is not known here); expected plain LoRA"),
        ({"use_next": 0}, "use_next = 0 (a key that is not known here)"),
        ({"next\nline": ["a\nb"]}, 'next line = ["a\\nb"] (a key that is not known here)'),
        ({"use_dora": True, "bias": "all"}, 'use_dora = true, bias = "all"'),
        ({"r": 0}, "r = 0, lora_alpha = 4.0; expected a rank of 1 or more and a finite scale"),
        ({"r": "four"}, "r = four"),
        ({"r": 0.5}, "r = 0.5"),
        ({"r": True}, "r = True"),
        ({"r": 2}, "base [2, 2], A [1, 2], B [2, 1], rank 2"),
        ({"lora_alpha": float("inf")}, "lora_alpha = inf"),
        ({"lora_alpha": 10**400}, "adapter_config.json that is not readable (OverflowError"),
        ({"lora_alpha": "4"}, "adapter_config.json that is not readable (TypeError"),
    ],
)
def test_what_a_plain_merge_does_not_cover_is_refused_by_name(
    base: Path, tmp_path: Path, config: dict[str, Any], found: str
) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(PairError) as fault:
        merge_adapter(base, adapter, tmp_path / "out")
    assert found in str(fault.value)
    assert "\n" not in str(fault.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_a_key_of_a_newer_peft_is_no_obstacle_at_the_value_that_turns_it_off(tmp_path: Path, value: Any) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_next": value, "use_dora": value}))
    assert open_adapter(adapter).scale == 4.0


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "EVA", "orthogonal", "mica"])
def test_a_start_that_leaves_the_base_as_it_is_is_plain(tmp_path: Path, start: Any) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": start}))
    assert open_adapter(adapter).scale == 4.0


def test_peft_has_no_setting_of_lora_that_is_not_known_and_its_defaults_are_plain(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    known = lora._READ | lora._NO_EFFECT | lora._MUST_BE_OFF | lora._CHOICES.keys()
    assert fields - known == set(), "decide for each whether it changes a merge"
    adapter = write_adapter(tmp_path / "adapter")
    peft.LoraConfig(r=1, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM").save_pretrained(adapter)
    assert set(json.loads((adapter / "adapter_config.json").read_text())) == fields - {"runtime_config"}
    assert open_adapter(adapter).scale == 4.0


def test_a_folder_without_an_adapter_and_pickled_factors_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(PairError, match=r"no adapter_config\.json; expected an adapter folder"):
        merge_adapter(base, base, tmp_path / "out")
    adapter = write_adapter(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(PairError, match="pickled weights, which can run code"):
        merge_adapter(base, adapter, tmp_path / "out")


def test_rank_stabilised_lora_is_scaled_by_the_root_of_its_rank(tmp_path: Path) -> None:
    aligned, _ = make_pair(tmp_path, "llama-tied")
    lora, name = write_lora(tmp_path / "lora", aligned, use_rslora=True), "model.layers.0.self_attn.q_proj.weight"
    merge_adapter(aligned, lora, tmp_path / "out")
    a, b = (t for _, t in sorted(load_file(lora / "adapter_model.safetensors").items()))
    expected = (read_all(aligned)[name].float() + (b @ a) * (8 / 2)).bfloat16()  # lora_alpha 8, rank 4
    assert torch.equal(read_all(tmp_path / "out")[name], expected)


def test_a_merge_keeps_each_tensors_dtype_the_small_files_and_the_adapters_own_tokenizer(tmp_path: Path) -> None:
    _, sft = make_pair(tmp_path, "llama-tied", sft_dtype=torch.float32, shard="300KB")
    lora = write_lora(tmp_path / "lora", sft)
    (lora / "tokenizer_config.json").write_text("{}")
    (lora / "chat_template.jinja").write_text("the adapter's")
    merge_adapter(sft, lora, tmp_path / "out")
    assert {t.dtype for t in read_all(tmp_path / "out").values()} == {torch.float32}
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "the adapter's"
    assert (tmp_path / "out" / "generation_config.json").is_file()
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_an_adapter_makes_a_pair_with_its_own_base_merged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPO_SEARCH_CACHE", str(tmp_path / "cache"))
    base, other = make_pair(tmp_path, "llama-tied")
    lora, said = write_lora(tmp_path / "lora", base), list[str]()
    spec = PairSpec(aligned=str(base), adapter=str(lora), reward_model=str(base))
    pair, again = (resolve_pair(spec, trust_remote_code=False, say=said.append) for _ in range(2))
    assert pair == again
    assert len([line for line in said if "merging" in line]) == 1
    assert pair.sft.path == base
    assert pair.base == pair.sft
    assert pair.aligned.id == f"{base}+{lora}"
    assert not torch.equal(
        *(read_all(s.path)["model.layers.0.self_attn.q_proj.weight"] for s in (pair.aligned, pair.sft))
    )
    given = resolve_pair(spec.model_copy(update={"sft": str(other)}), trust_remote_code=False, say=said.append)
    assert given.sft.path == other
    with pytest.raises(ValueError, match="an adapter but no aligned"):
        PairSpec(adapter=str(lora), sft=str(base), reward_model=str(base))


def test_a_base_is_read_whole_once_which_is_said_and_again_where_it_was_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPO_SEARCH_CACHE", str(tmp_path / "cache"))
    base, _ = make_pair(tmp_path, "llama-tied")
    lora, said, read = write_lora(tmp_path / "lora", base), list[str](), list[Path]()
    content_hash = Checkpoint.content_hash

    def counted(checkpoint: Checkpoint) -> str:
        read.append(checkpoint.path)
        return content_hash(checkpoint)

    monkeypatch.setattr(Checkpoint, "content_hash", counted)

    def merged(where: Path = base) -> Path:
        spec = PairSpec(aligned=str(where), adapter=str(lora), reward_model=str(base))
        return resolve_pair(spec, trust_remote_code=False, say=said.append).aligned.path

    first = merged()
    assert said[0] == f"reading {base} whole, 673 kB (once, while its files stay as they are)"
    assert merged() == first
    (tmp_path / "link").symlink_to(base)
    assert merged(tmp_path / "link") == first
    assert (len(read), len(said)) == (1, 2)
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"\0\0")
    assert merged() != first
    for file in (tmp_path / "cache" / "hashes").iterdir():
        file.write_text("{")
    merged()
    assert len(read) == 3


def test_a_base_on_the_hub_is_known_by_its_commit_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPO_SEARCH_CACHE", str(tmp_path / "cache"))
    base, _ = make_pair(tmp_path, "llama-tied")
    lora, said = write_lora(tmp_path / "lora", base), list[str]()
    monkeypatch.setattr(Checkpoint, "content_hash", lambda _: pytest.fail("read"))
    spec = PairSpec(aligned="o/base", adapter=str(lora), reward_model=str(base))

    def merged(commit: str) -> Path:
        found = Source(base, "o/base", commit, on_hub=True)
        monkeypatch.setattr("expo_search.inputs.pair.find_on_hub", lambda *_: found)
        return resolve_pair(spec, trust_remote_code=False, say=said.append).aligned.path

    assert merged("a" * 40) == merged("a" * 40) != merged("b" * 40)
    assert [line.partition(" ")[0] for line in said] == ["merging", "merging"]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, _ = make_pair(tmp_path, "llama-tied")
    lora = write_lora(tmp_path / "lora", base)
    (tmp_path / "file").touch()
    monkeypatch.setenv("EXPO_SEARCH_CACHE", str(tmp_path / "file"))
    spec = PairSpec(aligned=str(base), adapter=str(lora), reward_model=str(base))
    with pytest.raises(PairError, match=r"Not a directory.*set EXPO_SEARCH_CACHE"):
        resolve_pair(spec, trust_remote_code=False, say=lambda _: None)


def test_the_revisions_that_the_hub_gave_are_kept_with_the_study(tmp_path: Path) -> None:
    hub, local = Source(tmp_path, "owner/x", "abc", on_hub=True), Source(tmp_path, "x", "local")
    lora, merged = Source(tmp_path, "owner/lora", "def", on_hub=True), Source(tmp_path, "owner/x+owner/lora", "abc+1")
    given = {"aligned": "owner/x", "sft": "x", "reward_model": "owner/x"}
    spec = load_study(overrides={"pair": given})
    kept = pinned(spec, Pair(hub, local, hub)).pair
    assert (kept.aligned_revision, kept.sft_revision, kept.reward_revision) == ("abc", None, "abc")
    adapted = load_study(overrides={"pair": {"aligned": "owner/x", "adapter": "owner/lora", "reward_model": "x"}})
    kept = pinned(adapted, Pair(merged, hub, local, base=hub, adapter=lora)).pair
    assert (kept.aligned_revision, kept.adapter_revision, kept.reward_revision) == ("abc", "def", None)
    local_lora = Source(tmp_path, "lora", "local")
    assert pinned(adapted, Pair(merged, hub, local, base=hub, adapter=local_lora)).pair.adapter_revision is None


def test_an_adapter_of_another_base_is_refused_with_its_shapes(tmp_path: Path) -> None:
    aligned, _ = make_pair(tmp_path, "llama-tied")
    lora = write_lora(tmp_path / "lora", aligned)
    factors = load_file(lora / "adapter_model.safetensors")
    save_file(
        {k: v[:, :64].clone() if "lora_A" in k else v for k, v in factors.items()}, lora / "adapter_model.safetensors"
    )
    with pytest.raises(PairError, match=r"1 of 1 that do not fit \(.*q_proj\.weight: base \[128, 128\], A \[4, 64\]"):
        merge_adapter(aligned, lora, tmp_path / "out")


def test_a_reward_adapter_without_a_head_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(PairError, match=r"score\.weight"):
        merge_reward_adapter(base, write_adapter(tmp_path / "adapter"), tmp_path / "out")


@pytest.mark.parametrize("content", [None, b"no model"])
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(PairError, match="GGUF"):
        dequantise_gguf(tmp_path / "x.gguf", tmp_path / "out")


def test_an_existing_folder_is_never_overwritten(base: Path, tmp_path: Path) -> None:
    with pytest.raises(PairError, match="exists already"):
        merge_adapter(base, write_adapter(tmp_path / "adapter"), base)


@pytest.mark.parametrize(
    ("module", "name"), [(build, "check_fits"), (build, "published"), (atomic_folder, "sync_files")]
)
def test_two_that_build_a_folder_at_the_same_moment_both_have_it(
    module: Any, name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is done first: after this one has looked for it, before it begins, before it renames its own."""
    adapter, out, given = write_adapter(tmp_path / "adapter"), tmp_path / "out", getattr(module, name)

    def meets(*args: Any) -> Any:
        monkeypatch.setattr(module, name, given)
        merge_adapter(base, adapter, tmp_path / "other")
        (tmp_path / "other").rename(out)
        return given(*args)

    monkeypatch.setattr(module, name, meets)
    build_once(out, lambda: merge_adapter(base, adapter, out))
    assert open_checkpoint(out, role="merged").tensors.keys() == set(LAYERS)


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "free room"), (errno.EACCES, "free room"), (errno.EIO, "check the parts")]
)
def test_only_a_folder_without_room_is_advised_to_have_some(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(build, "write_merged", fails)
    with pytest.raises(PairError, match=rf"{os.strerror(number)}.*{advice}"):
        merge_adapter(base, write_adapter(tmp_path / "adapter"), tmp_path / "out")


BASES, ADAPTERS = "{{ 'base' }}", "{{ 'adapter' }}"


@pytest.mark.parametrize(
    ("of_base", "of_adapter", "expected"),
    [("file", "config", ADAPTERS), ("file", "file", ADAPTERS), ("file", None, BASES), ("config", None, BASES)],
)
def test_the_chat_template_is_the_adapters_and_the_bases_where_it_has_none(
    tmp_path: Path, of_base: str, of_adapter: str | None, expected: str
) -> None:
    """A file of its own wins over the tokenizer's config in transformers: the base's must not stay beside it."""
    base, _ = make_pair(tmp_path, "llama-tied")
    adapter = write_lora(tmp_path / "adapter", base)
    for file in TOKENIZER_FILES:
        if (base / file).is_file() and file != "chat_template.jinja":
            shutil.copyfile(base / file, adapter / file)
    (base / "chat_template.jinja").unlink()
    (base / "added_tokens.json").write_text("{}")
    for folder, where, template in ((base, of_base, BASES), (adapter, of_adapter, ADAPTERS)):
        if where == "file":
            (folder / "chat_template.jinja").write_text(template)
        elif where == "config":
            config = json.loads((folder / "tokenizer_config.json").read_text())
            named = [{"name": "default", "template": template}, {"name": "tools", "template": "x"}]
            (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    merge_adapter(base, adapter, tmp_path / "out")
    found = AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert (found["default"] if isinstance(found, dict) else found) == expected
    assert not (tmp_path / "out" / "added_tokens.json").exists()


@pytest.mark.parametrize("config", ["{", "[]", '{"chat_template": ["x", {"name": "default"}]}'])
def test_an_odd_tokenizers_config_is_left_to_who_reads_it(tmp_path: Path, config: str) -> None:
    base, _ = make_pair(tmp_path, "llama-tied")
    adapter = write_lora(tmp_path / "adapter", base)
    (adapter / "tokenizer_config.json").write_text(config)
    (base / "processor_config.json").write_text("{")
    merge_adapter(base, adapter, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == config


def test_a_merge_is_built_anew_when_the_base_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPO_SEARCH_CACHE", str(tmp_path / "cache"))
    base, reward = make_pair(tmp_path, "llama-tied")
    adapter = write_lora(tmp_path / "adapter", base)
    spec = PairSpec(aligned=str(base), adapter=str(adapter), reward_model=str(reward))

    def merged() -> Path:
        return resolve_pair(spec, trust_remote_code=False, say=lambda _: None).aligned.path

    first = merged()
    assert merged() == first
    os.utime(base / "model.safetensors")
    assert merged() == first, "the same bytes, only touched"
    (base / "chat_template.jinja").write_text(BASES)
    second = merged()
    assert (second / "chat_template.jinja").read_text() == BASES
    times = (base / "model.safetensors").stat()
    with (base / "model.safetensors").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\0\0")
    os.utime(base / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    third = merged()
    assert len({first, second, third}) == 3
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert (third / "model.safetensors").read_bytes() != (second / "model.safetensors").read_bytes()
