"""What is fetched of the Hub: room for it before it comes, how far it is while it comes."""

from __future__ import annotations

import time
from collections import namedtuple
from pathlib import Path

import pytest

from expo_search.errors import PairError
from expo_search.inputs.hub_download import HubCommit, check_room
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
    (aligned.cache / "blobs" / "ab.incomplete").write_bytes(bytes(4_000_000))  # which a run before has left
    check_room([aligned, sft, judge])


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
    assert doing[0].endswith("/s, left 0:03")
    assert doing[-1] == ""


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
