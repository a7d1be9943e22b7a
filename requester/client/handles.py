"""A job that was submitted, as an object: its id at once, its results as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

from requester.client.board import Progress
from requester.client.following import Following
from requester.client.news import NO_HOOKS, Hooks
from requester.client.results import Finished
from requester.purchase.phases import Phase

R = TypeVar("R", bound=Finished, covariant=True)


class AsyncJobHandle(Generic[R]):
    """One job of a market. It goes on whether or not anybody holds its handle."""

    def __init__(self, market: Following, job: bytes, hooks: Hooks = NO_HOOKS) -> None:
        self.id = job.hex()
        self._market = market
        self._job = job
        self._hooks = hooks

    def __repr__(self) -> str:
        return f"<job {self.id[:16]} {self.phase}>"

    @property
    def phase(self) -> str:
        """Where it stands (`requester.purchase.phases.Phase`), as the store has it."""
        return self._market.find(self._job).phase

    @property
    def title(self) -> str:
        """What it is called."""
        return self._market.find(self._job).title

    @property
    def signed(self) -> int:
        """When its order was signed, an Instant."""
        return self._market.find(self._job).signed

    @property
    def is_over(self) -> bool:
        """Whether waiting longer changes nothing."""
        return Phase(self.phase).is_over

    @property
    def cost(self) -> int:
        """What it costs so far in micro-credits (1,000,000 are a credit): verified segments at their price, commission
        included.
        """
        return self.progress().cost

    def follow(self) -> None:
        """See to it that the job is sent and driven while this market is open."""
        board = self._market.get_board(self._job)
        task = self._market.follow(self._job)
        if self._hooks is not NO_HOOKS:
            listening = board.listening(self._hooks)
            listening.__enter__()
            task.add_done_callback(lambda _: listening.__exit__(None, None, None))

    async def result(self, *, partial: bool = False, copy: bool = False) -> R:
        """Wait for the job and give its `JobResult`, `MapResult` or `TrainResult`. Raises as `AsyncMarket.map`."""
        found: R = await self._market.result(self._job, partial=partial, copy=copy)
        return found

    def results(self, *, partial: bool = False, copy: bool = False) -> AsyncIterator[tuple[int, Any]]:
        """(index, value) of each segment as soon as it is verified, in the order in which they come.

            handle = await market.submit_map(abs, [-1, 2, -3], cap=1)
            async for index, value in handle.results():
                print(index, value)

        Ends with the job; then raises `JobFailed` where a segment has no value, unless `partial`.
        """
        return self._market.watch_results(self._job, partial=partial, copy=copy)

    def metrics(self) -> list[dict[str, Any]]:
        """What the job has reported so far, each report a dict with its `segment`. The job's own word."""
        return self._market.metrics(self._job)

    def progress(self) -> Progress:
        """How far it is, and its leases. Live while this market follows it, else as the store has it."""
        return self._market.get_progress(self._job)

    async def cancel(self) -> str:
        """Stop it; see `AsyncMarket.cancel`."""
        return await self._market.cancel(self._job)

    def logs(self) -> AsyncIterator[bytes]:
        """What it wrote, as it comes, until it is over. Hostile text."""
        return self._market.logs(self._job)
