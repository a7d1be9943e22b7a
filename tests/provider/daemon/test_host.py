"""Where the daemon looks for a bubblewrap of the system: the usual places, then the path, as set-up does."""

from __future__ import annotations

from pathlib import Path

import pytest

from provider.daemon.host import find_bwraps
from provider.sandbox.probe import SYSTEM_BWRAPS


def test_a_bubblewrap_on_the_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "bwrap"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_bwraps() == (*SYSTEM_BWRAPS, str(own))


def test_without_one_the_usual_places_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_bwraps() == SYSTEM_BWRAPS
