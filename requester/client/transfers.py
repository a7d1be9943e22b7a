"""Blobs of one job between its store and its broker: small ones together, large ones from and to files in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from broker.protocol.api import INLINE_BYTES, Submission
from broker.protocol.jobs import JobSpec
from broker.rpc.client import BrokerClient
from chain.base.errors import Fault, Refused, Unavailable
from requester.purchase import events as e
from requester.store.blobs import SMALL_BYTES, BlobFolder

TOGETHER_BYTES = 64 << 20
"""Bytes of blobs that are held in memory together."""

OnBytes = Callable[[str, int, int], None]
"""Hears `upload` or `download`, bytes done, bytes in all."""


class Transfers:
    """Moves blobs. `sizes` of outputs, as far as their records say them, tell small from large; a record that says less
    than there is only costs a second request.
    """

    def __init__(self, blobs: BlobFolder, broker: BrokerClient, tell: OnBytes) -> None:
        self._blobs = blobs
        self._broker = broker
        self._tell = tell

    async def attach(self, submission: Submission) -> Submission:
        """The submission with its blobs inside where they are small; else they lie at the broker afterwards."""
        spec = submission.spec
        if await self.send_ahead(spec):
            return submission
        found = [self._blobs.get(digest) for digest in dict.fromkeys((spec.code, spec.inputs))]
        return msgspec.structs.replace(submission, blobs=tuple(blob for blob in found if blob))

    async def send_ahead(self, spec: JobSpec) -> bool:
        """Send what is too large to ride inside a submission; whether there was anything. What the broker holds of it
        is not sent again.
        """
        sizes = {spec.code: spec.code_bytes, spec.inputs: spec.input_bytes}
        if sum(sizes.values()) <= INLINE_BYTES:
            return False
        for digest, size in sizes.items():
            if size > SMALL_BYTES:
                path = self._blobs.path(digest)
                await self._broker.put_file(path, digest, size, partial(self._tell, "upload"))
            elif size:
                await self._broker.put_blob(self._blobs.get(digest) or b"")
        return True

    async def fetch(
        self, effect: e.FetchBlobs, sizes: Mapping[bytes, int], complain: Callable[[str, str], None]
    ) -> e.BlobsFetched | e.FetchFailed:
        """Get blobs of a lease into the store; what the broker does not give is left out."""
        found = await asyncio.to_thread(self._measure, effect.digests)
        missing = [digest for digest in effect.digests if digest not in found]
        small = [digest for digest in missing if sizes.get(digest, 0) <= SMALL_BYTES]
        try:
            found |= await self._fetch_small(small, effect.max_bytes, complain)
            for digest in missing:
                if digest not in found:
                    found |= await self._fetch_large(digest, effect.max_bytes, complain)
        except Unavailable as error:
            return e.FetchFailed(effect.lease, error.message[:2_000])
        return e.BlobsFetched(effect.lease, tuple(e.Found(digest, size) for digest, size in found.items()))

    def _measure(self, digests: Sequence[bytes]) -> dict[bytes, int]:
        views = {digest: self._blobs.open(digest) for digest in digests}
        return {digest: len(view) for digest, view in views.items() if view is not None}

    async def _fetch_small(
        self, digests: list[bytes], max_bytes: int, complain: Callable[[str, str], None]
    ) -> dict[bytes, int]:
        if not digests:
            return {}
        try:
            limit = min(TOGETHER_BYTES, max_bytes * len(digests))
            got = await self._broker.get_many(digests, limit)
        except (Refused, Fault) as error:
            if error.rule != "blob.size":  # larger than they were said to be: one by one, into files
                complain(error.rule, error.message)
            return {}
        await asyncio.to_thread(self._blobs.put_many, list(got.values()))
        return {digest: len(data) for digest, data in got.items() if len(data) <= max_bytes}

    async def _fetch_large(
        self, digest: bytes, max_bytes: int, complain: Callable[[str, str], None]
    ) -> dict[bytes, int]:
        path = self._blobs.folder / f".incoming.{digest.hex()}"
        try:
            self._blobs.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            size = await self._broker.get_file(digest, path, max_bytes, partial(self._tell, "download"))
            self._blobs.adopt(path, digest)
        except (Refused, Fault) as error:
            complain(error.rule, error.message)
            return {}
        except OSError as error:
            raise Unavailable(f"cannot write {path}: {error}", rule="file.write") from error
        return {digest: size}
