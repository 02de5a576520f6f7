import pytest
from checkpoints import write_checkpoint
from comparing import NINE


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("compared") / "model", NINE)
