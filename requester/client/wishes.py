"""What to run and within which limits: functions and scripts as blobs, wishes as a job spec.

Functions travel as cloudpickle, which is only ever written here and loaded inside the sandbox; arguments as packed
values. A function's own package goes along by value, since no provider has it.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import msgspec

from broker.protocol.jobs import Entry, JobSpec, Level, Runtime
from broker.protocol.values import CannotCarry, pack
from chain.base.errors import Refused
from chain.base.hashing import compute_digest
from chain.base.units import parse_credits
from chain.ledger.terms.agreement import Kind
from requester.client.texts import parse_size, parse_span
from requester.purchase.order import DEFAULT_WINDOWS, Terms, make_resources

MAX_SCRIPT_BYTES = 16 << 20
"""Largest script that is read."""


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and price of a job. `cap` in credits (text, int or float) or None to be told to name one; `memory` and
    `output` in bytes or as `512MiB`; `wall` in seconds or as `10min`, and so `acceptance`: how long after delivery your
    silence accepts; `within`: how long after signing the work is done at the latest, which is the time it may wait
    behind other jobs (None: an hour, for longer jobs twice the least they need); `auction`: how long after signing bids
    are waited for at most, when somebody is silent or all are busy; `packages` are those the job imports.
    """

    cap: str | float | None = None
    memory: int | str = "512MiB"
    wall: float | str = 300
    acceptance: float | str = 600
    within: float | str | None = None
    auction: float | str = 2
    cores: float = 1
    output: int | str = "64MiB"
    packages: tuple[str, ...] = ("numpy",)
    level: str = "ns"
    seed: int = 0
    title: str = ""
    python: str = ""

    def make_terms(self, commission: int) -> Terms:
        """Terms at this broker's commission in basis points. Raises `Refused`: `cap.missing`, `units.credits`, …"""
        if self.cap is None:
            raise Refused("name the most the job may cost: --cap CREDITS, or cap=… in Python", rule="cap.missing")
        amount = f"{self.cap:.6f}" if isinstance(self.cap, float) else str(self.cap)
        windows = msgspec.structs.replace(DEFAULT_WINDOWS, acceptance=parse_span(self.acceptance))
        return Terms(
            cap=parse_credits(amount),
            segment_wall=parse_span(self.wall),
            commission=commission,
            windows=windows,
            auction=parse_span(self.auction),
            within=None if self.within is None else parse_span(self.within),
        )


class Work(msgspec.Struct, frozen=True):
    """Code and inputs of a job, as they will lie in the blob store."""

    entry: Entry
    code: bytes
    inputs: bytes
    title: str


def pack_function(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Work:
    """A call as work. Raises `Refused` under `value.carry` for an argument or a function that can't be carried."""
    name = getattr(function, "__qualname__", type(function).__name__)
    try:
        with _by_value(function):
            code = cloudpickle.dumps(function)
    except Exception as error:  # pickling runs code of the function's objects, which may raise anything
        raise Refused(f"{name} can't be sent: {type(error).__name__}: {error}", rule="value.carry") from error
    return Work(Entry.FUNCTION, code, _pack_arguments(tuple(args), kwargs), name)


def pack_script(path: Path, args: Sequence[Any], inputs: dict[str, Any]) -> Work:
    """A script as work: it finds `args` and `inputs` as globals and leaves its result in the global `result`."""
    try:
        code = path.read_bytes()
    except OSError as error:
        raise Refused(f"cannot read the script {path}: {error.strerror}", rule="script.file") from error
    if len(code) > MAX_SCRIPT_BYTES:
        raise Refused(f"{path} is larger than {MAX_SCRIPT_BYTES} bytes", rule="script.size")
    try:
        compile(code, path.name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise Refused(f"{path} is no Python script: {error}", rule="script.syntax") from error
    return Work(Entry.SCRIPT, code, _pack_arguments(tuple(args), inputs), path.name)


def make_spec(work: Work, wishes: Wishes) -> JobSpec:
    """The job spec. Raises `Refused` under `spec.cores`, or `spec.form` for wishes outside what a spec can say."""
    if not 0.001 <= wishes.cores < math.inf:
        raise Refused(f"cores {wishes.cores:g} is no number of cores; write for example 1 or 0.5", rule="spec.cores")
    wall = parse_span(wishes.wall)
    try:
        resources = make_resources(
            parse_size(wishes.memory),
            wall,
            millicores=round(wishes.cores * 1_000),
            output_bytes=parse_size(wishes.output),
        )
        spec = JobSpec(
            title=(wishes.title or work.title)[:200],
            kind=Kind.RUN,
            entry=work.entry,
            code=compute_digest(work.code),
            code_bytes=len(work.code),
            inputs=compute_digest(work.inputs),
            input_bytes=len(work.inputs),
            runtime=Runtime(wishes.python or get_python(), tuple(sorted(set(wishes.packages)))),
            resources=resources,
            level=Level(wishes.level),
            seed=wishes.seed,
        )
        return msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=JobSpec)
    except (ValueError, msgspec.ValidationError) as error:
        raise Refused(f"no job can be described so: {error}", rule="spec.form") from error


def get_python() -> str:
    """The Python minor version that runs this, which is the one a cloudpickled function needs."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _pack_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    try:
        return pack((args, kwargs), name="arguments")
    except CannotCarry as error:
        raise Refused(str(error), rule="value.carry") from error


@contextlib.contextmanager
def _by_value(function: Callable[..., Any]) -> Iterator[None]:
    """Within, the package that the function stands in is pickled by value, unless every Python has it."""
    top = (getattr(function, "__module__", None) or "__main__").partition(".")[0]
    module = sys.modules.get(top)
    installed = "site-packages" in (getattr(module, "__file__", None) or "")
    if module is None or top == "__main__" or top in sys.stdlib_module_names or installed:
        yield
        return
    known = top in cloudpickle.list_registry_pickle_by_value()
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        if not known:
            cloudpickle.unregister_pickle_by_value(module)
