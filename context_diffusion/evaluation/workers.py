"""Measuring in several processes, which share the cores of a machine better than threads inside one do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

_function: list[Callable] = []


@contextmanager
def parallel_map(function: Callable, workers: int) -> Iterator[Callable[[Iterable], Iterator]]:
    """A `map` with `function` over tasks, in this process or in several.

    Args:
        function: sent once to every process, so it and the tasks must pickle.
        workers: processes; 1 stays in this one.
    """
    if workers == 1:
        yield partial(map, function)
        return
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start, initargs=(function,)
    ) as pool:
        yield partial(pool.map, _call)


def _start(function: Callable) -> None:
    torch.set_num_threads(1)
    _function[:] = [function]


def _call(task: Any) -> Any:
    return _function[0](task)
