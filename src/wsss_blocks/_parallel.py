"""Work on many files in threads, with a bounded number of them in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from wsss_blocks._validate import check_int

__all__ = ["ordered_map"]

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(
    fn: Callable[[T], R], items: Iterable[T], *, workers: int, window: int | None = None
) -> Iterator[R]:
    """Yield ``fn(item)`` in the order of the items, computed by threads.

    At most ``window`` items are in work or wait to be taken, so memory does not grow with their
    number. On an error, an interrupt, or when the generator is closed, what has not started is
    cancelled and what runs is waited for.

    Args:
        fn: called in the threads; what it raises is raised here, in its turn.
        items: drawn as needed.
        workers: number of threads.
        window: default four times ``workers``.

    Raises:
        ValueError: ``workers`` or ``window`` is less than 1.
    """
    check_int("workers", workers, least=1)
    check_int("window", window := 4 * workers if window is None else window, least=1)
    return _ordered(fn, items, workers, window)


def _ordered(fn: Callable[[T], R], items: Iterable[T], workers: int, window: int) -> Iterator[R]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="wsss-blocks")
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(fn, item))
            if len(waiting) == window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
