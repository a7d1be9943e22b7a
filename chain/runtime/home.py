"""Where data lies: $TALLY_HOME, by default /var/lib/tallystick for root and the XDG data folder otherwise (design.md
section 6).
"""

from __future__ import annotations

import os
from pathlib import Path


def tally_home() -> Path:
    """Folder of all parts' data; it need not exist yet."""
    named = os.environ.get("TALLY_HOME")
    if named:
        return Path(named)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/tallystick")
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "tallystick"
