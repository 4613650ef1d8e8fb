"""What is fetched of the Hub: room for it before it comes, how far it is while it comes."""

from __future__ import annotations

import re
import time
from collections import namedtuple
from pathlib import Path

import pytest
from twins import make_pair

from expo_search.checkpoint.folder import open_checkpoint
from expo_search.config.spec import PairSpec
from expo_search.errors import CheckpointError, PairError
from expo_search.inputs import pair as pair_module
from expo_search.inputs.hub_download import HubCommit, check_room
from expo_search.inputs.hub_outline import outline
from expo_search.inputs.pair import resolve_pair
from expo_search.inputs.source import Pair, Source
from expo_search.text import clock, size

COMMIT = "0" * 40
Usage = namedtuple("Usage", "total used free")


def commit(cache: Path, role: str, n_bytes: int, *, fetched: bool = False) -> HubCommit:
    folder = cache / f"models--owner--{role}"
    (folder / "blobs").mkdir(parents=True)
    missing = frozenset() if fetched else frozenset({"model.safetensors"})
    return HubCommit(f"owner/{role}", COMMIT, role, ("*",), folder, {"model.safetensors": n_bytes}, missing)


def test_a_disk_without_room_for_all_is_named_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(0, 0, 20_000_000))
    sizes = {"aligned": 14_000_000, "sft": 5_000_000}
    aligned, sft = (commit(tmp_path, role, n) for role, n in sizes.items())
    check_room([aligned, sft, commit(tmp_path, "reward", 10**12, fetched=True)])
    judge = commit(tmp_path, "judge", 3_000_000)
    with pytest.raises(PairError) as fault:
        check_room([aligned, sft, judge])
    assert str(fault.value) == (
        f"the Hub's cache {tmp_path}: 20 MB free; expected room for 22 MB (aligned owner/aligned 14 MB, "
        "sft owner/sft 5 MB, judge owner/judge 3 MB); free some, or name a folder on a larger disk in HF_HOME"
    )


class TestSecondJudge:
    """It is found before the pair is fetched, and fetched when it is asked for."""

    PAIR = PairSpec(aligned="o/aligned", sft="o/sft", reward_model="o/reward", check_reward_model="o/judge")

    @pytest.fixture(autouse=True)
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Repositories of 4 MB, but the judge, which is gated where it is said so."""

        def find(id: str, revision: str | None, role: str, *_: object) -> HubCommit:
            assert revision is None
            if (tmp_path / f"{role} is gated").exists():
                raise PairError(where=f"{role} {id}", found="gated", expected="access", do="ask for it")
            return commit(tmp_path, role, 4_000_000)

        monkeypatch.setattr(pair_module, "find_on_hub", find)
        monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(0, 0, 14_000_000))
        monkeypatch.setattr(HubCommit, "fetch", lambda self, *_, **__: Source(tmp_path, self.id, COMMIT, on_hub=True))

    def test_one_that_cannot_be_had_is_said_first(self, tmp_path: Path) -> None:
        (tmp_path / "check reward model is gated").touch()
        with pytest.raises(PairError, match="check reward model o/judge: gated"):
            resolve_pair(self.PAIR, trust_remote_code=False, say=pytest.fail, with_judge=True)

    def test_the_disk_has_room_for_it_too(self) -> None:
        with pytest.raises(PairError, match=r"room for 16 MB .*, check reward model owner/check reward model 4 MB"):
            resolve_pair(self.PAIR, trust_remote_code=False, say=pytest.fail, with_judge=True)

    def test_where_it_is_not_asked_for_nobody_looks_for_it(self, tmp_path: Path) -> None:
        (tmp_path / "check reward model is gated").touch()
        pair = resolve_pair(self.PAIR, trust_remote_code=False, say=pytest.fail)
        assert [source.id for source in (pair.aligned, pair.sft)] == ["owner/aligned", "owner/sft"]


def test_while_it_comes_its_rate_and_the_time_left_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aligned = commit(tmp_path, "aligned", 4_000_000)

    def download(*_: object, **__: object) -> str:
        (aligned.cache / "blobs" / "ab.incomplete").write_bytes(bytes(1_000_000))
        time.sleep(1.5)
        return str(tmp_path / COMMIT)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    said: list[str] = []
    doing: list[str] = []
    source = aligned.fetch(said.append, doing.append)
    assert (source.path, source.revision, source.on_hub, source.to_fetch) == (tmp_path / COMMIT, COMMIT, True, 0)
    assert said == ["fetching aligned owner/aligned: 4 MB, kept in the Hub's cache"]
    assert doing[0].startswith("fetching aligned owner/aligned: 1 MB of 4 MB, ")
    assert re.search(r"/s, left 0:0\d$", doing[0])
    assert doing[-1] == ""


def test_only_what_lacks_weights_is_outlined(tmp_path: Path) -> None:
    """Programs that load a model do not fetch its README."""
    assert commit(tmp_path, "aligned", 1).lacks_weights
    sizes = {"model.safetensors": 10, "README.md": 1}
    small = HubCommit("o/x", COMMIT, "sft", ("*",), tmp_path, sizes, frozenset({"README.md"}))
    assert (small.lacks_weights, small.n_bytes) == (False, 1)


class TestOutline:
    @pytest.fixture
    def fetched(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[bytes, str]]:
        """What `_fetched` finds: the header of a real file, and a name of its content. The cache is `tmp_path`."""
        make_pair(tmp_path / "pair", "llama-tied", delta=0.2)
        (tmp_path / "small").mkdir()
        (tmp_path / "small" / "config.json").write_bytes((tmp_path / "pair" / "sft" / "config.json").read_bytes())
        whole = (tmp_path / "pair" / "sft" / "model.safetensors").read_bytes()
        heads = {"model.safetensors": (whole[: 8 + int.from_bytes(whole[:8], "little")], "a" * 40)}
        monkeypatch.setattr("expo_search.inputs.hub_outline._fetched", lambda *_: (tmp_path / "small", heads))
        monkeypatch.setenv("EXPO_SEARCH_CACHE", str(tmp_path / "cache"))
        return heads

    def found(self, tmp_path: Path, *more: str) -> HubCommit:
        sizes = dict.fromkeys(more, 2) | {"config.json": (tmp_path / "small" / "config.json").stat().st_size}
        sizes["model.safetensors"] = (tmp_path / "pair" / "sft" / "model.safetensors").stat().st_size
        return HubCommit("o/x", COMMIT, "sft", ("*",), tmp_path, sizes, frozenset(sizes))

    @pytest.mark.usefixtures("fetched")
    def test_it_has_the_tensors_of_the_weights_and_cannot_be_loaded(self, tmp_path: Path) -> None:
        source = outline(self.found(tmp_path))
        whole, known = open_checkpoint(tmp_path / "pair" / "sft", role="sft"), open_checkpoint(source.path, role="sft")
        assert {n: (t.dtype, t.shape, t.offset) for n, t in known.tensors.items()} == {
            n: (t.dtype, t.shape, t.offset) for n, t in whole.tensors.items()
        }
        assert known.header_hash == whole.header_hash
        assert (source.is_outline, source.to_fetch) == (True, self.found(tmp_path).n_bytes)
        with pytest.raises(PairError, match="aligned o/x: headers alone, as asked for with fetch=False"):
            Pair(source, source).rated_by(source).refuse_outlines()

    def test_other_content_looks_other_and_files_that_trust_adds_make_another_one(
        self, tmp_path: Path, fetched: dict[str, tuple[bytes, str]]
    ) -> None:
        first = outline(self.found(tmp_path))
        (tmp_path / "small" / "modeling.py").write_text("#\n")
        fetched["model.safetensors"] = (fetched["model.safetensors"][0], "b" * 40)
        second = outline(self.found(tmp_path, "modeling.py"))
        assert (second.path / "modeling.py").is_file()
        hashes = {open_checkpoint(s.path, role="sft").sample_hash for s in (first, second)}
        assert len(hashes) == 2

    def test_a_header_that_is_none_and_a_cache_that_cannot_be_written_are_one_line(
        self, tmp_path: Path, fetched: dict[str, tuple[bytes, str]]
    ) -> None:
        fetched["model.safetensors"] = (b"\xff" * 8, "")
        with pytest.raises(CheckpointError, match="a header of 18446744073709551615 bytes"):
            outline(self.found(tmp_path))
        assert not (tmp_path / "cache").exists(), "nothing half-written"
        (tmp_path / "cache").write_text("a file")
        with pytest.raises(PairError, match="set EXPO_SEARCH_CACHE to another folder"):
            outline(self.found(tmp_path))


def test_what_is_there_is_not_said_to_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / COMMIT))
    said: list[str] = []
    commit(tmp_path, "aligned", 4_000_000, fetched=True).fetch(said.append, said.append)
    assert said == []


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (999.4e6, "999 MB"), (999.6e6, "1.0 GB"), (14.48e9, "14.5 GB")],
)
def test_sizes_have_the_unit_that_suits_them(n_bytes: float, expected: str) -> None:
    assert size(n_bytes) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(None, "?"), (59.6, "1:00"), (3725, "1:02:05")])
def test_times_are_minutes_and_seconds(seconds: float | None, expected: str) -> None:
    assert clock(seconds) == expected
