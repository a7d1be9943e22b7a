"""Blobs by digest, one file each. What is read is hashed again: a file that does not match is as if it were absent."""

from __future__ import annotations

from pathlib import Path

from chain.base.hashing import compute_digest
from chain.runtime.files import write_atomically


class BlobFolder:
    """Blobs below `folder`, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, data: bytes) -> bytes:
        """Keep `data`; returns its digest. Raises `Unavailable` under `file.write`."""
        digest = compute_digest(data)
        if self.get(digest) is None:
            write_atomically(self.path(digest), data, mode=0o600)
        return digest

    def get(self, digest: bytes) -> bytes | None:
        """The blob, or None where there is none that matches."""
        if digest == compute_digest(b""):
            return b""
        try:
            data = self.path(digest).read_bytes()
        except OSError:
            return None
        return data if compute_digest(data) == digest else None

    def path(self, digest: bytes) -> Path:
        """Where a blob lies."""
        return self.folder / digest.hex()
