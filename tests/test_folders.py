"""What is there, and one line where the system does not look: names too long, links in a circle, closed folders."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import expo_search as es
from expo_search.cli.main import app
from expo_search.config.presets import load_study
from expo_search.config.spec import PairSpec, PartsSpec
from expo_search.errors import ExpoError, PairError, PromptsError, StoreError, StudyError
from expo_search.exporting.target import check_is_free
from expo_search.folders import existing, is_there
from expo_search.inputs.pair import resolve_pair
from expo_search.inputs.prompts import load_prompts
from expo_search.session.preflight import check
from expo_search.session.surroundings import database
from expo_search.store.database import check_readable, check_storage, reading_url, study_names

TOO_LONG = "x" * 300


def looked_at(path: Path) -> bool:
    return is_there(path, StudyError, where="--out", expected="a name", do="name another")


def test_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert looked_at(tmp_path)
    assert looked_at(tmp_path / "link")
    assert not any(looked_at(tmp_path / name) for name in ("none", "file/below", "a\0b"))


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of another user that may not be looked into, also where root runs this."""
    folder, stat = tmp_path / "closed", Path.stat

    def refusing(path: Path, **options: bool) -> object:
        if folder in path.absolute().parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    folder.mkdir()
    monkeypatch.setattr(Path, "stat", refusing)
    return folder


def test_where_the_system_does_not_look_the_stages_error_says_why(tmp_path: Path, closed: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path, reason in (
        (tmp_path / TOO_LONG, "File name too long"),
        (tmp_path / "circle", "Too many levels of symbolic links"),
        (closed / "x", "Permission denied"),
    ):
        with pytest.raises(StudyError) as fault:
            looked_at(path)
        assert str(fault.value) == f"--out: {reason}; expected a name; name another"


def test_the_nearest_folder_that_exists_is_above_a_name_too_long(tmp_path: Path) -> None:
    assert existing(tmp_path / TOO_LONG / "x") == tmp_path


def one_line(fault: pytest.ExceptionInfo[ExpoError], where: str, reason: str) -> None:
    assert fault.value.where == where
    assert fault.value.found == reason
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("role", ["aligned", "sft", "adapter", "reward_model"])
def test_a_checkpoint_in_a_closed_folder_is_one_line(role: str, tmp_path: Path, closed: Path) -> None:
    here = {name: str(tmp_path) for name in ("aligned", "sft", "reward_model")}
    for path, reason in ((str(closed / "x"), "Permission denied"), (TOO_LONG, "File name too long")):
        with pytest.raises(PairError) as fault:
            resolve_pair(PairSpec(**here | {role: path}), trust_remote_code=False, say=print)
        one_line(fault, f"{role.replace('_', ' ')} {path}", reason)


def test_prompts_in_a_closed_folder_are_one_line(closed: Path) -> None:
    for source, reason in ((f"{closed}/p.jsonl", "Permission denied"), (f"{TOO_LONG}.jsonl", "File name too long")):
        with pytest.raises(PromptsError) as fault:
            load_prompts(source, "train", 1)
        one_line(fault, f"prompts {source}", reason)


@pytest.mark.parametrize(
    ("source", "reason"), [(f"{TOO_LONG}.jsonl", "File name too long"), ("~no-such-user/p.jsonl", "no such file")]
)
def test_prompts_that_are_looked_for_among_the_shipped_ones_first_are_one_line(
    source: str, reason: str, tmp_path: Path
) -> None:
    given = {"pair": dict.fromkeys(("aligned", "sft", "reward_model"), "o/x"), "prompts": {"source": source}}
    with pytest.raises(PromptsError) as fault:
        check(load_study(overrides=given), f"sqlite:///{tmp_path / 'x.db'}", print)
    one_line(fault, f"prompts {source}", reason)


def test_a_database_in_a_closed_folder_is_one_line(closed: Path) -> None:
    for url, reason in (
        (f"sqlite:///{closed / 'x.db'}", "Permission denied"),
        (f"sqlite:///{TOO_LONG}.db", "File name too long"),
    ):
        for look in (check_storage, check_readable, study_names, reading_url):
            with pytest.raises(StoreError) as fault:
                look(url)
            one_line(fault, f"--storage {url}", reason)
        assert (database(url).status, reason in database(url).text) == ("missing", True)


def test_a_cache_in_a_closed_folder_is_one_line(monkeypatch: pytest.MonkeyPatch, closed: Path) -> None:
    monkeypatch.setenv("EXPO_SEARCH_CACHE", str(closed / "cache"))
    parts = {"package": "pytest", "version": "1.0", "file": "pytest/__init__.py", "sha256": "0" * 64}
    pair = PairSpec(parts=PartsSpec(**parts, aligned_adapter="demo/aligned", reward_adapter="demo/reward"))
    with pytest.raises(PairError, match=r"Permission denied.*set EXPO_SEARCH_CACHE"):
        resolve_pair(pair, trust_remote_code=False, say=print)


def test_an_export_to_a_name_too_long_is_one_line() -> None:
    with pytest.raises(StudyError) as fault:
        check_is_free(Path(TOO_LONG), force=False)
    one_line(fault, f"--out {TOO_LONG}", "File name too long")


class TestHome:
    """`~` is a home also where the shell leaves it as it is: after `--out=`, in Python, in a study file."""

    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        home, here = tmp_path / "home", tmp_path / "here"
        home.mkdir()
        here.mkdir()
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.chdir(here)
        return home

    @pytest.mark.parametrize(
        ("typed", "where"),
        [
            ("--study=~/no.toml", "no.toml"),
            ("reproduce ~/no", "no"),
            ("doctor --log=~/no/where.log", "no/where.log"),
        ],
    )
    def test_a_path_of_any_command_may_begin_with_it(self, typed: str, where: str, home: Path) -> None:
        with pytest.raises(StudyError) as fault:
            app(typed.split())
        assert fault.value.where.split()[-1] == str(home / where)

    def test_a_study_file_is_written_there_and_no_folder_of_that_name_is_made(self, home: Path) -> None:
        app(["init", "~/mine.toml", "--pair", "zephyr"], standalone_mode=False)
        assert es.load_study(file="~/mine.toml") == es.load_study(file=home / "mine.toml")
        assert list(Path().iterdir()) == []

    def test_one_of_nobody_stays_as_it_is(self) -> None:
        with pytest.raises(StudyError, match=r"^~no-such-user/no.toml: no such file"):
            es.load_study(file="~no-such-user/no.toml")
