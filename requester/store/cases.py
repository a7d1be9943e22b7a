"""Case files on disk: written whole or not at all, read piece by piece. Not here: their form (`purchase.casefile`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from chain.base.errors import Refused, Unavailable
from chain.runtime.files import sync_folder
from requester.purchase.casefile import BlobSource, Case, CaseContent, CaseReader, write_case
from requester.store.blobs import BlobFolder
from requester.store.jobs import JobStore

PIECE_BYTES = 1 << 20
"""How much of a file is read or told of at a time."""

OnBytes = Callable[[int], None]
"""Hears how many bytes were read or written so far."""


def write_case_file(path: Path, content: CaseContent, on_bytes: OnBytes | None = None) -> int:
    """Write a case; returns its size in bytes.

    Raises `Refused` under a `case.` rule where a blob is not what its digest says, `Unavailable` under `file.write`;
    then there is no new file, and an old one is as it was.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            for piece in write_case(content):
                file.write(piece)
                if on_bytes is not None:
                    on_bytes(file.tell())
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}", rule="file.write") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    return size


def read_case_file(path: Path, on_bytes: OnBytes | None = None) -> Case:
    """Read a case; nothing in it is verified. Raises `Refused` under `case.file` for a file that can't be read, else
    as `CaseReader`.
    """
    reader, done = CaseReader(), 0
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                reader.feed(piece)
                done += len(piece)
                if on_bytes is not None:
                    on_bytes(done)
    except OSError as error:
        raise Refused(f"cannot read the case file {path}: {error.strerror}", rule="case.file") from error
    return reader.close()


def gather_case(store: JobStore, job: bytes, *, outputs: bool, inputs: bool) -> CaseContent:
    """All that is kept of a job, ready to be written. Raises what `JobStore.load_documents` does."""
    documents = store.load_documents(job)
    records = store.load_records(job, documents)
    return CaseContent(documents, records, partial(_find, store.blobs), outputs, inputs)


def _find(blobs: BlobFolder, digest: bytes) -> BlobSource | None:
    """A blob in a file of its own is read piece by piece; a small one may lie elsewhere."""
    path = blobs.path(digest)
    try:
        size = path.stat().st_size
    except OSError:
        data = blobs.get(digest)
        return None if data is None else BlobSource(len(data), lambda: (data,))
    return BlobSource(size, lambda: _read_pieces(path))


def _read_pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
