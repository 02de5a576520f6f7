from collections.abc import Iterator

import pytest
from paging import browser, page, script  # noqa: F401 - fixtures
from serving import Served, serving


@pytest.fixture(scope="session")
def demo() -> Iterator[Served]:
    """The demo, served; its defaults are greedy."""
    with serving() as served:
        yield served
