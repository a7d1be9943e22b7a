"""One runtime image for all tests of the sandbox, and the ways of running jobs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from provider.sandbox.runtimes import RuntimeImage, build_image
from tests.provider.sandbox.world import WHO, Host, find_host


@pytest.fixture(scope="session")
def image() -> Iterator[RuntimeImage]:
    """An image where every user can reach it."""
    folder = Path(tempfile.mkdtemp(prefix="tallystick-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield build_image(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="session", params=WHO)
def host(request: pytest.FixtureRequest, image: RuntimeImage) -> Iterator[Host]:
    """Each way of running jobs in turn."""
    found = find_host(request.param, image)
    yield found
    if found.abilities.cgroup is not None:
        found.abilities.cgroup.remove_family()


@pytest.fixture(scope="session")
def best(image: RuntimeImage) -> Iterator[Host]:
    """The strongest way this machine gives, for tests that need only one."""
    for who in WHO:
        try:
            found = find_host(who, image)
        except pytest.skip.Exception:
            continue
        yield found
        if found.abilities.cgroup is not None:
            found.abilities.cgroup.remove_family()
        return
    pytest.skip("kernel: no way to run a sandbox here")
