"""Makes batches ahead of the step that takes them, in a thread, and moves them to the device."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from bitjax.extras import extra

T = TypeVar("T")
U = TypeVar("U")

_ENDLESS = 2**62  # examples; a range must have an end


def in_background(
    make: Callable[[int], T], start: int, stop: int | None, ahead: int = 2
) -> Generator[T, None, None]:
    """make(start), make(start + 1), ..., with the next `ahead` of them made in a thread."""
    steps = itertools.count(start) if stop is None else iter(range(start, stop))
    pool = ThreadPoolExecutor(1, thread_name_prefix="bitjax-batches")
    try:
        waiting = deque(pool.submit(make, step) for step in itertools.islice(steps, ahead))
        while waiting:
            made = waiting.popleft().result()
            waiting.extend(pool.submit(make, step) for step in itertools.islice(steps, 1))
            yield made
    finally:
        pool.shutdown(cancel_futures=True)


def in_threads(
    read: Callable[[int], Any], start: int, stop: int | None, size: int, threads: int
) -> Generator[Any, None, None]:
    """read(start), read(start + 1), ..., stacked into batches of `size`, ahead in threads."""
    with extra("data", "A streamed data set"):
        import grain  # 2 s to import: only who streams pays.

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 2 * size))
    examples = grain.MapDataset.range(start, _ENDLESS if stop is None else stop).map(read)
    iterator = iter(examples.to_iter_dataset(options).batch(size))
    try:
        yield from iterator
    finally:
        iterator.close()


def to_device(
    batches: Iterator[T], put: Callable[[T], U], ahead: int = 2
) -> Generator[U, None, None]:
    """put(batch) for every batch, called `ahead` batches before that one is asked for.

    `put` starts a copy and does not wait for it, as `jax.device_put` does: copies run beside steps.

    Args:
      batches: Batches. They are closed at their end, or when this generator is.
      put: Moves a batch to where the step runs.
      ahead: How many moved batches to keep ready, at least 0.

    Returns:
      A generator; `close` it where it is left before its end.

    Example:
      >>> list(to_device(iter([1, 2, 3]), lambda batch: 10 * batch))
      [10, 20, 30]
    """
    try:
        moved: deque[U] = deque()
        for batch in batches:
            moved.append(put(batch))
            if len(moved) > ahead:
                yield moved.popleft()
        while moved:
            yield moved.popleft()
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()
