"""Repetition of an answer: low for prose, high for loops, in any language and script."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expo_search.stats.repetition import LOOPS_FROM, WINDOW, repetition

ENGLISH = (
    "Photosynthesis is how plants turn light into food. Chlorophyll in the leaves absorbs sunlight, and with its "
    "energy the plant splits water, sets oxygen free, and builds sugars out of carbon dioxide from the air."
)
GERMAN = (
    "Die Fotosynthese wandelt Licht in chemische Energie um. Das Blattgrün nimmt das Sonnenlicht auf, spaltet Wasser, "
    "gibt Sauerstoff ab und baut aus dem Kohlendioxid der Luft verschiedene Zucker auf."
)
CHINESE = (
    "光合作用是植物利用阳光制造养分的过程。叶片中的叶绿素吸收光能，把水分解成氢和氧，氧气被释放到空气中，"
    "而二氧化碳则在一系列反应后变成糖类，供植物生长使用，也养活了地球上几乎所有的动物。"
)
THAI = (
    "การสังเคราะห์ด้วยแสงคือกระบวนการที่พืชใช้พลังงานจากดวงอาทิตย์สร้างอาหาร คลอโรฟิลล์ในใบดูดซับแสง "
    "แล้วแยกน้ำออกเป็นออกซิเจนและไฮโดรเจน จากนั้นจึงนำคาร์บอนไดออกไซด์มาสร้างเป็นน้ำตาล"
)
CODE = """def mean(values):
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)


def variance(values):
    centre = mean(values)
    return sum((x - centre) ** 2 for x in values) / (len(values) - 1)
"""
NUMBERED = "1. apples\n2. pears\n3. plums\n4. figs\n5. kiwis\n6. limes\n7. dates"
SCRIPTS = {"english": ENGLISH, "german": GERMAN, "chinese": CHINESE, "thai": THAI}


@pytest.mark.parametrize("text", [*SCRIPTS.values(), CODE, NUMBERED], ids=[*SCRIPTS, "code", "list"])
def test_ordinary_text_hardly_repeats_itself(text: str) -> None:
    assert repetition(text) < 0.1


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_a_sentence_that_comes_again_and_again_is_a_loop(text: str) -> None:
    assert repetition(text[:40] * 10) > 0.85
    assert repetition(f"{text} {text[-25:] * 20}") > LOOPS_FROM


@pytest.mark.parametrize("loop", ["the the ", "哈", "ครับ", "\n", "= ", "0"])
def test_a_word_or_a_sign_that_never_ends_is_a_loop(loop: str) -> None:
    assert repetition(loop * 100) > 0.9


def test_an_answer_that_is_said_twice_is_no_loop_yet() -> None:
    assert 0.3 < repetition(f"{ENGLISH} {ENGLISH}") < LOOPS_FROM


@pytest.mark.parametrize("text", ["", " ", "no", "a" * (WINDOW - 1), "a" * WINDOW])
def test_a_text_too_short_to_repeat_anything_does_not(text: str) -> None:
    assert repetition(text) == 0.0


@given(text=st.text(max_size=200), times=st.integers(2, 8))
def test_any_text_said_several_times_repeats_at_least_as_much_as_that_says(text: str, times: int) -> None:
    n_windows = len(text) * times - WINDOW + 1
    assert 0.0 <= repetition(text) <= 1.0
    if n_windows > 0:  # a text that goes round has as many different windows as characters, at most
        assert repetition(text * times) >= 1 - len(text) / n_windows - 1e-12
