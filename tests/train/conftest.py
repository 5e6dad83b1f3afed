"""One small dataset and one uninterrupted run, made once a session. Do not change them: copy."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small import fit, write_dataset


@pytest.fixture(scope="session")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("discs") / "dataset"
    write_dataset(root)
    return root


@pytest.fixture(scope="session")
def whole(discs: Path) -> Path:
    """A run that nothing interrupted."""
    run = discs.with_name("whole")
    fit(discs, run)
    return run


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Training sets the number of threads; other tests shall not notice."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
