import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsss_blocks.training import Phases


@given(st.integers(0, 50), st.integers(0, 100), st.floats(0, 5))
def test_on_from_the_first_step(start, step, weight):
    phases = Phases({"cls": 0, "seg": start}, weights={"seg": weight})
    expected = False
    for t in range(step + 1):
        if t == start:
            expected = True
    assert phases.active("seg", step) is expected
    assert phases.weight("seg", step) == (weight if expected else 0.0)
    assert phases.weight("cls", step) == 1.0


def test_describe_lists_terms_in_order_of_their_start():
    phases = Phases({"gia": 1000, "cls": 0, "seg": 1000, "aux": 0}, weights={"seg": 0.1})
    assert phases.describe() == "from step 0: cls, aux; from step 1000: gia, seg x 0.1"
    assert Phases({}).describe() == ""


def test_arguments_are_copied():
    starts = {"cls": 0}
    phases = Phases(starts)
    starts["cls"] = 10
    assert phases.active("cls", 0)


def test_refuses():
    with pytest.raises(ValueError, match=r"starts must be steps >= 0, got -1 for 'seg'"):
        Phases({"seg": -1})
    with pytest.raises(ValueError, match=r"weights must be >= 0 and finite, got -1 for 'seg'"):
        Phases({"seg": 0}, weights={"seg": -1})
    with pytest.raises(ValueError, match=r"name must be one of \['seg'\], got 'sge'"):
        Phases({"seg": 0}, weights={"sge": 1.0})
    with pytest.raises(ValueError, match=r"name must be one of \['seg'\], got 'cls'"):
        Phases({"seg": 0}).active("cls", 3)
    with pytest.raises(ValueError, match="got 'cls'"):
        Phases({"seg": 0}).weight("cls", 3)
