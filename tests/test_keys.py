"""A study file to begin with, and the schema that editors complete it by: both say what `StudySpec` is."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from expo_search.cli.begin import init
from expo_search.config.keys import schema, study_file
from expo_search.config.presets import load_study, preset_names
from expo_search.config.spec import StudySpec
from expo_search.errors import StudyError

OWN = {"aligned": "models/aligned", "sft": "models/sft", "reward_model": "org/judge", "prompts": "my.jsonl"}


def loaded(folder: Path, text: str) -> StudySpec:
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    return load_study(file=folder / "mine.toml", trust_remote_code=True)


def without_marks(text: str) -> str:
    """Every key that has a value taken from behind its #."""
    return re.sub(r"^# (?=\w+ = .*(?<!# not set)$)", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("name", sorted({file.stem for file in preset_names().values()}))
def test_a_file_on_a_preset_is_the_preset_also_with_every_key_taken_from_behind_its_mark(
    name: str, tmp_path: Path
) -> None:
    preset = load_study(preset=name, trust_remote_code=True)
    for text in (study_file(name, {}), without_marks(study_file(name, {}))):
        assert loaded(tmp_path, text) == preset


def test_a_file_of_ones_own_pair_has_all_defaults(tmp_path: Path) -> None:
    overrides = {
        "pair": {key: OWN[key] for key in ("aligned", "sft", "reward_model")},
        "prompts": {"source": "my.jsonl"},
    }
    usual = load_study(overrides=overrides, name="mine", trust_remote_code=True)
    for text in (study_file(None, OWN), without_marks(study_file(None, OWN))):
        assert loaded(tmp_path, text) == usual
    assert set(tomllib.loads(study_file(None, OWN))["pair"]) == {"aligned", "sft", "reward_model"}


@pytest.mark.parametrize(("preset", "pair"), [("zephyr", {}), (None, OWN)])
def test_a_key_that_is_not_set_is_toml_without_its_mark_and_one_that_stays_empty_is_named(
    preset: str | None, pair: dict[str, str], tmp_path: Path
) -> None:
    text = study_file(preset, pair)
    whole = tomllib.loads(re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE))
    unset = {(table, key) for table in ("pair", "reward") for key, value in whole[table].items() if value == ""}
    assert {("pair", "adapter"), ("pair", "sft_revision"), ("pair", "chat_template"), ("reward", "scorer")} <= unset
    assert unset == set(not_set(text))
    for table, key in unset:
        marked = re.compile(rf"^# ({key} = .*# not set)$", re.MULTILINE)
        with pytest.raises(StudyError, match=rf"mine\.toml: {table}\.{key}: .*expected"):
            loaded(tmp_path, marked.sub(r"\1", text))


def not_set(text: str) -> list[tuple[str, str]]:
    """Table and key of what a study file marks as not set."""
    tables = re.split(r"^\[(\w+)\]$", text, flags=re.MULTILINE)[1:]
    named = zip(tables[::2], tables[1::2], strict=True)
    return [(table, key) for table, rest in named for key in re.findall(r"^# (\w+) = .*# not set$", rest, re.MULTILINE)]


def test_every_key_of_a_search_stands_in_the_file() -> None:
    text = study_file(None, OWN)
    for table, field in StudySpec.model_fields.items():
        keys = getattr(field.annotation, "model_fields", {})
        assert not keys or f"[{table}]" in text
        for key in set(keys) - {"family", "aliases", "licence", "notes", "needs_remote_code", "parts"}:
            assert re.search(rf"^(# )?{key} =", text, re.MULTILINE), f"{table}.{key}"


def test_every_key_has_a_comment_of_its_own_and_a_guardrails_says_its_unit() -> None:
    text = study_file(None, OWN)
    assert max(map(len, text.splitlines())) <= 120
    *parts, _ = re.split(r"^(?:# )?(\w+) =.*\n", text.partition("[pair]\n")[2], flags=re.MULTILINE)
    comments = [" ".join(part.rpartition("]\n")[2].replace("#", "").split()) for part in parts[::2]]
    assert [key for key, comment in zip(parts[1::2], comments, strict=True) if not comment] == []
    told = dict(zip(parts[1::2], comments, strict=True))
    for key in ("cut_off_rise", "repeating_rise"):
        assert "as a share of all answers, 0 to 1" in told[key]
    assert "tokens" in told["length_ratio"]
    assert "gsm8k = 0.02" in told["bench"]


def test_init_writes_a_new_file_alone_and_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init(tmp_path / "a.toml", None, "sft", "aligned", None, None)
    assert "fill in its reward_model" in capsys.readouterr().err
    before = (tmp_path / "a.toml").read_bytes()
    with pytest.raises(StudyError, match="exists already; expected a new file"):
        init(tmp_path / "a.toml", "zephyr", None, None, None, None)
    assert (tmp_path / "a.toml").read_bytes() == before
    with pytest.raises(StudyError, match="no pair; expected --pair NAME, --sft and --aligned, or"):
        init(tmp_path / "b.toml", None, "sft", None, None, None)
    with pytest.raises(StudyError, match="unknown preset"):
        init(tmp_path / "b.toml", "zefyr", None, None, None, None)
    assert [file.name for file in tmp_path.iterdir()] == ["a.toml"]


def test_init_leaves_nothing_behind_where_it_cannot_write_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StudyError, match="--reward-model r\udcff: bytes that are not UTF-8; expected text"):
        init(tmp_path / "a.toml", None, "sft", "aligned", "r\udcff")

    def full(file: Path, text: str, **_: str) -> None:
        file.write_bytes(text.encode()[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StudyError, match=r"a\.toml: No space left on device; expected a new file"):
        init(tmp_path / "a.toml", "zephyr")
    assert list(tmp_path.iterdir()) == []


def test_the_study_of_a_new_file_is_named_after_it_where_a_study_can_be(tmp_path: Path) -> None:
    init(tmp_path / "mine.toml", "zephyr")
    init(tmp_path / "own.toml", None, "sft", "aligned", "org/judge")
    init(tmp_path / "mine, too.toml", "zephyr")
    names = [load_study(file=tmp_path / name).name for name in ("mine.toml", "own.toml", "mine, too.toml")]
    assert names == ["mine", "own", "zephyr"]


def test_init_takes_an_adapter_and_names_the_consent_that_a_preset_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init(tmp_path / "a.toml", None, None, "org/base", "org/judge", None, "org/lora")
    pair = tomllib.loads((tmp_path / "a.toml").read_text(encoding="utf-8"))["pair"]
    assert pair == {"aligned": "org/base", "adapter": "org/lora", "reward_model": "org/judge"}
    assert "--trust-remote-code" not in capsys.readouterr().err
    init(tmp_path / "b.toml", "internlm2-7b")
    assert "--dry-run --trust-remote-code" in capsys.readouterr().err


def test_paths_that_are_there_are_written_as_they_lie_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("sft", "aligned", "studies"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    init(Path("studies/mine.toml"), None, "sft", "aligned", "org/judge", None)
    pair = tomllib.loads(Path("studies/mine.toml").read_text(encoding="utf-8"))["pair"]
    assert pair == {"sft": "../sft", "aligned": "../aligned", "reward_model": "org/judge"}
    assert load_study(file=Path("studies/mine.toml")).pair.sft == "sft"


def test_the_schema_has_every_key_with_its_default_and_takes_the_presets() -> None:
    told = json.loads(
        subprocess.run(
            [sys.executable, "-m", "expo_search", "schema"], capture_output=True, text=True, check=True
        ).stdout
    )
    assert told == schema()
    search = told["$defs"]["SearchSpec"]["properties"]
    assert search["seed"]["default"] == 42
    assert search["racing"]["description"] == "Stop a trial early once it cannot win."
    assert "zephyr" in told["properties"]["preset"]["enum"]
    assert told["$defs"]["SearchSpec"]["additionalProperties"] is False
    for file in set(preset_names().values()):
        data = tomllib.loads(file.read_text(encoding="utf-8"))
        assert set(data) <= set(told["properties"])
        for table, values in data.items():
            model = getattr(StudySpec.model_fields[table].annotation, "__name__", "")
            assert not isinstance(values, dict) or set(values) <= set(told["$defs"][model]["properties"])
