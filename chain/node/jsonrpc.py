"""JSON-RPC 2.0 as its specification says it: one call or a batch in, answers out, notifications silent.

Scope: the envelope, the parameters by name or by position, and errors as codes. It knows no HTTP and no chain:
methods come as a table. A method's
parameters are a `msgspec.Struct`; what does not fit it is `-32602`. Errors of ours travel by class: `Refused` -32001
with its rule, not yet final -32002, `Unavailable` -32003,
all else -32603, whose details stay in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from chain.base.errors import Refused, TallyError, Unavailable
from chain.rpc.schema import PENDING, REFUSED, UNAVAILABLE
from chain.runtime.logs import get_logger

__all__ = [
    "INTERNAL",
    "INVALID_PARAMS",
    "INVALID_REQUEST",
    "MAX_BATCH",
    "METHOD_NOT_FOUND",
    "PARSE_ERROR",
    "Dispatcher",
    "Method",
]

PARSE_ERROR = -32700
"""The body is no JSON."""

INVALID_REQUEST = -32600
"""The JSON is no request object."""

METHOD_NOT_FOUND = -32601
"""No such method."""

INVALID_PARAMS = -32602
"""The parameters don't fit the method."""

INTERNAL = -32603
"""Our fault."""

MAX_BATCH = 256
"""Most calls of one batch: each may hold a connection's worth of waiting."""

PENDING_RULE = "chain.pending"
"""Rule of the `Unavailable` that becomes `-32002`."""


class Method(msgspec.Struct, frozen=True):
    """A method: the struct of its parameters, in their order by position, and the coroutine function that answers."""

    params: type[msgspec.Struct]
    call: Callable[[Any], Awaitable[Any]]


class _Error(Exception):
    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code, self.data = code, data


class Dispatcher:
    """Answers requests by a table of methods."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._methods = dict(methods)
        self._log = get_logger("rpc")

    async def answer(self, body: bytes) -> bytes | None:
        """The answer's JSON, or None where all that came were notifications."""
        try:
            request = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _encode(_failed(None, _Error(PARSE_ERROR, "Parse error")))
        if not isinstance(request, list):
            alone = await self._answer_one(request)
            return None if alone is None else _encode(alone)
        if not 1 <= len(request) <= MAX_BATCH:
            return _encode(_failed(None, _Error(INVALID_REQUEST, "Invalid Request", _why_batch(len(request)))))
        answers = await asyncio.gather(*(self._answer_one(one) for one in request))
        given = [answer for answer in answers if answer is not None]
        return _encode(given) if given else None

    async def _answer_one(self, request: Any) -> dict[str, object] | None:
        if not _is_request(request):
            return _failed(None, _Error(INVALID_REQUEST, "Invalid Request"))
        number = request.get("id")
        try:
            answer = {"jsonrpc": "2.0", "result": await self._call(request), "id": number}
        except _Error as error:
            answer = _failed(number, error)
        return answer if "id" in request else None

    async def _call(self, request: Mapping[str, Any]) -> object:
        method = self._methods.get(request["method"])
        if method is None:
            raise _Error(METHOD_NOT_FOUND, "Method not found")
        params = _read_params(method.params, request.get("params", {}))
        try:
            return await method.call(params)
        except Refused as error:
            raise _Error(REFUSED, error.message, {"rule": error.rule}) from error
        except Unavailable as error:
            code = PENDING if error.rule == PENDING_RULE else UNAVAILABLE
            raise _Error(code, error.message, {"rule": error.rule}) from error
        except Exception as error:
            self._log.error("a call failed", method=request["method"], error=repr(error), exc_info=error)
            rule = error.rule if isinstance(error, TallyError) else "rpc.internal"
            raise _Error(INTERNAL, "Internal error", {"rule": rule}) from error


def _is_request(request: Any) -> bool:
    return (
        isinstance(request, dict)
        and request.get("jsonrpc") == "2.0"
        and isinstance(request.get("method"), str)
        and isinstance(request.get("params", {}), dict | list)
        and isinstance(request.get("id"), str | int | float | None)
        and not isinstance(request.get("id"), bool)
    )


def _read_params(kind: type[msgspec.Struct], params: dict[str, object] | list[object]) -> msgspec.Struct:
    names = [field.name for field in msgspec.structs.fields(kind)]
    if isinstance(params, list):
        if len(params) > len(names):
            raise _Error(INVALID_PARAMS, "Invalid params", f"at most {len(names)} are taken: {', '.join(names)}")
        params = dict(zip(names, params, strict=False))
    try:
        return msgspec.convert(params, kind)
    except msgspec.ValidationError as error:
        raise _Error(INVALID_PARAMS, "Invalid params", str(error)) from error


def _failed(number: object, error: _Error) -> dict[str, object]:
    told: dict[str, object] = {"code": error.code, "message": str(error)}
    if error.data is not None:
        told["data"] = error.data
    return {"jsonrpc": "2.0", "error": told, "id": number}


def _why_batch(size: int) -> str:
    return f"a batch holds 1 to {MAX_BATCH} calls, this one {size}"


def _encode(answer: object) -> bytes:
    return msgspec.json.encode(answer)
