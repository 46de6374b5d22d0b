"""The parts of research/ are known to these tests, and to no others."""

from contextlib import contextmanager

import pytest

import research
from context_diffusion.checkpoint import parts
from context_diffusion.cli import train
from context_diffusion.model import reading
from context_diffusion.training.__main__ import STAGE_CLASSES
from context_diffusion.training.settings import SETTINGS

_TABLES = (parts.PARTS, parts._DIFFUSERS, parts._OWN, parts._CLASSES, parts._MODELS, parts._FITS, reading._KNOWN)
_TABLES += (STAGE_CLASSES, SETTINGS)


@contextmanager
def as_it_was():
    """What was registered within it is forgotten behind it."""
    copies, process = [table.copy() for table in _TABLES], train.PROCESS
    yield
    train.PROCESS = process
    for table, copy in zip(_TABLES, copies, strict=True):
        table.clear()
        (table.extend if isinstance(table, list) else table.update)(copy)


@pytest.fixture(scope="package", autouse=True)
def registered():
    with as_it_was():
        research.register()
        yield
