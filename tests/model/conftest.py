"""Tiny random models; one torch thread, for the machine's cores are shared."""

import pytest
import torch

from tests.model.inputs import Tiny
from ureca.model.initialization import build_tiny


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Tiny:
    return build_tiny()
