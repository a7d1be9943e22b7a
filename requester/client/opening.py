"""What `AsyncMarket.connect` returns: to be awaited, or entered by `async with`, as its caller likes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

__all__ = ["Opening"]


class Closable(Protocol):
    """What can be closed."""

    async def close(self) -> None:
        """Give back what is held."""


T = TypeVar("T", bound=Closable)


class Opening(Generic[T]):
    """Something that `open_it` opens once it is awaited or entered; nothing happens before. Raises what that does."""

    def __init__(self, open_it: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._open = open_it
        self._opened: T | None = None

    if not TYPE_CHECKING:  # a checker knows by itself that nothing else is here

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"this is not open yet, so it has no {name}: await it, or use `async with`", name=name)

    def __await__(self) -> Generator[Any, Any, T]:
        return self._open().__await__()

    async def __aenter__(self) -> T:
        self._opened = await self._open()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.close()
