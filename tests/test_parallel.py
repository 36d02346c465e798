import threading
import time

import pytest

from wsss_blocks._parallel import ordered_map


def test_results_come_in_order_from_several_threads():
    together = threading.Barrier(3, timeout=10)  # passes only if three run at once
    seen = set()

    def work(i):
        if i < 3:
            together.wait()
        time.sleep(0.001 * (5 - i % 5))
        seen.add(threading.get_ident())
        return i * i

    assert list(ordered_map(work, range(40), workers=3)) == [i * i for i in range(40)]
    assert len(seen) == 3
    assert threading.get_ident() not in seen


@pytest.mark.parametrize(("workers", "window"), [(1, 1), (2, 1), (2, 5), (4, 3)])
def test_the_window_bounds_what_is_drawn_ahead(workers, window):
    drawn, taken = [], 0

    def items():
        for i in range(30):
            drawn.append(i)
            assert len(drawn) - taken <= window
            yield i

    for result in ordered_map(lambda i: -i, items(), workers=workers, window=window):
        assert result == -taken
        taken += 1
    assert taken == 30
    assert list(ordered_map(len, [], workers=1)) == []


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt()])
def test_an_error_is_raised_in_its_turn_and_ends_the_rest(error):
    started = []

    def work(i):
        started.append(i)
        if i == 3:
            raise error
        time.sleep(0.01)
        return i

    found, before = [], threading.active_count()
    with pytest.raises(type(error)):
        found.extend(ordered_map(work, range(1000), workers=2, window=8))
    assert found == [0, 1, 2]
    assert max(started) < 3 + 8
    assert threading.active_count() == before


def test_a_closed_generator_cancels_what_waits():
    started = []

    def work(i):
        started.append(i)
        time.sleep(0.01)

    before = threading.active_count()
    results = ordered_map(work, range(1000), workers=1, window=50)
    next(results)
    results.close()
    assert len(started) < 10
    assert threading.active_count() == before


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"workers": 2, "window": 0}])
def test_wrong_numbers(wrong):
    with pytest.raises(ValueError, match=r"(workers|window) must be at least 1"):
        ordered_map(len, [], **wrong)
