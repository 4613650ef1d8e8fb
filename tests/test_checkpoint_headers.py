"""Headers of safetensors files: whatever is wrong with one is a `CheckpointError`, found without reading weights."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from test_checkpoint_folder import fault_of, make

from expo_search.checkpoint.folder import SINGLE, open_checkpoint


def raw(folder: Path, header: bytes, data: bytes = bytes(8), *, length: int | None = None) -> Path:
    """A checkpoint whose only file has this header and data; `length` is what the file says of its header."""
    make(folder)
    prefix = struct.pack("<Q", len(header) if length is None else length)
    (folder / SINGLE).write_bytes(prefix + header + data)
    return folder


def entry(shape: list[Any], *offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry([2], 0, 12)},
        {"a": entry([2], 4, 12)},
        {"a": entry([2], -8, 0)},
        {"a": entry([2], 8, 0)},
        {"a": entry([1], 0, 8)},
        {"a": entry([3], 0, 8)},
        {"a": entry([1], 0, 4)},
        {"a": entry([1], 0, 4), "b": entry([1], 0, 4)},
        {"a": entry([2], 0, 8), "b": entry([1], 4, 8)},
        {"a": entry([1], 4, 8)},
        {"a": entry([-2], 0, 8)},
        {"a": entry([-1, -2], 0, 8)},
        {"a": entry([2.0], 0, 8)},
        {"a": entry([True, 2], 0, 8)},
        {"a": entry(["2"], 0, 8)},
        {"a": entry([2], 0, 8) | {"shape": "2"}},
        {"a": entry([], 0, 4) | {"shape": ""}},
        {"a": entry([], 0, 4) | {"shape": {}}},
        {"a": entry([0], 0, 0) | {"data_offsets": "00"}},
        {"a": entry([2], 0)},
        {"a": entry([2], 0, 8, 8)},
        {"a": entry([2], "0", "8")},
        {"a": entry([2], None, None)},
        {"a": entry([2], 0, 8, dtype="F31")},
        {"a": entry([2], 0, 8, dtype=["F32"])},
        {"a": entry([2**63, 2], 0, 8)},
        {"a": entry([2**63] * 20, 0, 8)},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": 5},
        {"\ud800": entry([2], 0, 8)},
        {"a": entry([2], 0, 8), "__metadata__": 0},
        {"a": entry([2], 0, 8), "__metadata__": {"format": None}},
        {},
        [],
        None,
    ],
    ids=lambda header: json.dumps(header),
)
def test_a_header_that_disagrees_with_itself_or_with_the_file_is_refused(tmp_path: Path, header: Any) -> None:
    fault = fault_of(raw(tmp_path, json.dumps(header).encode()))
    assert fault.where == f"sft checkpoint {tmp_path}, file {SINGLE}"
    assert (fault.expected, fault.do) == ("a whole safetensors file", "download the file again")


@pytest.mark.parametrize("header", [b"", b"not JSON", b"\xff\xfe", b'{"a": ' * 50_000])
def test_a_header_that_is_no_json_is_refused(tmp_path: Path, header: bytes) -> None:
    assert "header" in fault_of(raw(tmp_path, header)).found


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    one = json.dumps(entry([2], 0, 8))
    assert "'a' twice" in fault_of(raw(tmp_path, f'{{"a": {one}, "a": {one}}}'.encode())).found


@pytest.mark.parametrize("length", [0, 3, 2**31, 2**63, 2**64 - 1])
def test_a_header_length_that_is_wrong_is_refused_without_reading_that_much(tmp_path: Path, length: int) -> None:
    assert "header" in fault_of(raw(tmp_path, json.dumps({"a": entry([2], 0, 8)}).encode(), length=length)).found


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    file = make(tmp_path) / SINGLE
    whole = file.read_bytes()
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert fault_of(tmp_path).expected == "a whole safetensors file"


numbers = st.sampled_from([0, 1, 2, 4, 8, 12]) | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none()
values = (
    numbers
    | st.text(max_size=3)
    | st.lists(numbers, max_size=3)
    | st.sampled_from(["BF16", "BOOL", [2], [0, 4], [4, 8]])
)


@st.composite
def headers(draw: st.DrawFn) -> dict[str, Any]:
    """A header of two tensors that fits its data, with up to two of its values replaced."""
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt"},
        "a": entry([1], 0, 4),
        "b": entry([2, 1], 4, 8, dtype="F16"),
    }
    for _ in range(draw(st.integers(0, 2))):
        table = draw(st.sampled_from(["a", "b", "__metadata__"]))
        field = draw(st.sampled_from([None, "dtype", "shape", "data_offsets"]))
        if field is None or not isinstance(header[table], dict):
            header[table] = draw(values)
        else:
            header[table][field] = draw(values)
    return header


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=headers())
def test_whatever_the_safetensors_library_cannot_open_is_a_checkpoint_error(
    tmp_path: Path, header: dict[str, Any]
) -> None:
    folder = raw(tmp_path, json.dumps(header).encode())
    try:
        with safe_open(folder / SINGLE, framework="pt") as file:
            expected = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        assert SINGLE in fault_of(folder).where
        return
    assert {n: t.shape for n, t in open_checkpoint(folder, role="sft").tensors.items()} == expected


spans = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=4)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spans=spans)
def test_tensors_that_overlap_or_leave_a_gap_are_refused_and_no_others(
    tmp_path: Path, spans: list[tuple[int, int]]
) -> None:
    header = {str(i): entry([max(0, stop - start)], start, stop, dtype="U8") for i, (start, stop) in enumerate(spans)}
    folder = raw(tmp_path, json.dumps(header).encode(), bytes(12))
    back_to_back = [0, *(stop for _, stop in sorted(spans))] == [*(start for start, _ in sorted(spans)), 12]
    if back_to_back and all(start <= stop for start, stop in spans):
        assert len(open_checkpoint(folder, role="sft").tensors) == len(spans)
    else:
        assert SINGLE in fault_of(folder).where


huge = st.integers(2**31, 2**200)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.lists(st.integers(1, 9) | huge, min_size=1, max_size=50), offset=st.integers(0, 8) | huge)
def test_numbers_of_any_size_are_refused_without_reserving_memory_for_them(
    tmp_path: Path, shape: list[int], offset: int
) -> None:
    folder = raw(tmp_path, json.dumps({"a": entry(shape, 0, offset, dtype="U8")}).encode())
    if math.prod(shape) == offset == 8:
        assert open_checkpoint(folder, role="sft").tensors["a"].shape == tuple(shape)
    else:
        assert SINGLE in fault_of(folder).where
