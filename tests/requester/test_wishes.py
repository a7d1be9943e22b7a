"""What is packed: functions that load where this project is not, scripts, and specs within their bounds."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import requester
from broker.protocol.jobs import Entry, Level, Runtime
from broker.protocol.values import unpack
from chain.base.errors import Refused
from chain.base.hashing import compute_digest
from requester.client.packing import make_run, pack_function, pack_source
from requester.client.wishes import Wishes, get_python, make_spec, split_wishes
from requester.purchase.order import AUCTION_MS

FACTOR = 3
ELSEWHERE = "import sys, pickle; print(pickle.loads(sys.stdin.buffer.read())(14))"


def scale(number: int) -> int:
    return FACTOR * inner(number)


def inner(number: int) -> int:
    return number


def make_closure(by: int) -> Any:
    return lambda number: by * scale(number)


@pytest.mark.parametrize(
    ("function", "result"),
    [(scale, 42), (make_closure(2), 84), (functools.partial(pow, 2), 16_384), (abs, 14), (lambda n: n + FACTOR, 17)],
)
def test_functions_load_in_a_python_that_has_only_cloudpickle(function: Any, result: int, tmp_path: Path) -> None:
    """A function's own module goes along by value, with the globals it reads."""
    code = pack_function(function).blob
    paths = [str(Path(cloudpickle.__file__).parents[1])]
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {paths!r}; {ELSEWHERE}"]
    done = subprocess.run(command, input=code, capture_output=True, cwd=tmp_path, check=False)
    assert done.stdout.decode().strip() == str(result), done.stderr.decode()


def test_packing_leaves_no_trace_in_cloudpickle() -> None:
    before = set(cloudpickle.list_registry_pickle_by_value())
    pack_function(scale)
    assert set(cloudpickle.list_registry_pickle_by_value()) == before
    cloudpickle.register_pickle_by_value(sys.modules["tests"])
    try:
        pack_function(scale)
        assert "tests" in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules["tests"])


def test_a_script_goes_as_its_source_with_arguments_and_inputs(tmp_path: Path) -> None:
    path = tmp_path / "job.py"
    path.write_text("result = args, inputs\n")
    work = make_run(pack_source(path), ("a", 1), {"rate": 0.5})
    assert (work.code.entry, work.code.blob, work.code.title) == (Entry.SCRIPT, b"result = args, inputs\n", "job.py")
    assert unpack(work.inputs.join()) == (("a", 1), {"rate": 0.5})


BAD_SCRIPTS: list[tuple[bytes | None, str]] = [
    (None, "script.file"),
    (b"result = \n", "script.syntax"),
    (b"\x00", "script.syntax"),
    (b"#" * (17 << 20), "script.size"),
]


@pytest.mark.parametrize(("content", "rule"), BAD_SCRIPTS, ids=["absent", "syntax", "null", "size"])
def test_scripts_that_are_none(tmp_path: Path, content: bytes | None, rule: str) -> None:
    path = tmp_path / "job.py"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Refused) as refused:
        pack_source(path)
    assert refused.value.rule == rule


def test_a_spec_says_what_was_wished() -> None:
    work = make_run(pack_function(scale), (1,), {})
    wishes = Wishes(memory="1GiB", wall="10s", cores=1.5, output="1MiB", packages=("scipy", "numpy", "numpy"), seed=9)
    spec = make_spec(work, wishes)
    assert spec.runtime == Runtime(get_python(), ("numpy", "scipy"))
    resources = spec.resources
    assert (resources.memory_bytes, resources.millicores, resources.cpu_ms) == (1 << 30, 1_500, 15_000)
    assert (resources.output_bytes, spec.seed, spec.level) == (1 << 20, 9, Level.NS)
    assert (spec.code, spec.inputs) == (compute_digest(work.code.blob), compute_digest(work.inputs.join()))
    assert make_spec(work, Wishes(title="x" * 300)).title == "x" * 200
    assert make_spec(work, Wishes(python="3.12")).runtime.python == "3.12"


@pytest.mark.parametrize(
    ("wishes", "rule"),
    [
        ({"level": "none"}, "spec.form"),
        ({"packages": ("a b",)}, "spec.form"),
        ({"packages": tuple(f"p{number}" for number in range(65))}, "spec.form"),
        ({"seed": -1}, "spec.form"),
        ({"cores": -1.0}, "spec.cores"),
        ({"wall": "forever"}, "units.span"),
        ({"wall": 1e300}, "R18.range"),
    ],
)
def test_wishes_outside_what_a_spec_can_say(wishes: dict[str, Any], rule: str) -> None:
    with pytest.raises(Refused) as refused:
        make_spec(make_run(pack_function(scale), (1,), {}), Wishes(**wishes))
    assert refused.value.rule in {rule, "spec.form"}


@pytest.mark.parametrize(
    ("name", "given"),
    [(name, given) for name in ("wall", "memory", "output") for given in (0, "0", -1)]
    + [("wall", "0s"), ("wall", 0.0001), ("memory", "0MiB"), ("output", "0.1B")],
)
def test_a_limit_that_leaves_nothing_is_refused_before_it_is_signed(name: str, given: Any) -> None:
    """Such a job would fail at once, and a failed segment is paid (R9)."""
    with pytest.raises(Refused, match=rf"^{name} {given} leaves the job nothing") as refused:
        make_spec(make_run(pack_function(scale), (1,), {}), Wishes(**{name: given}))
    assert refused.value.rule == "spec.limit"


@pytest.mark.parametrize("given", [math.nan, math.inf, -math.inf])
def test_no_span_is_endless_or_no_number(given: float) -> None:
    with pytest.raises(Refused) as refused:
        make_spec(make_run(pack_function(scale), (1,), {}), Wishes(wall=given))
    assert refused.value.rule == "units.span"


@pytest.mark.parametrize(("cap", "micro"), [("2", 2_000_000), (2, 2_000_000), (0.25, 250_000), ("0.000001", 1)])
def test_caps_in_credits(cap: Any, micro: int) -> None:
    assert Wishes(cap=cap).make_terms(200).cap == micro


def test_spans_become_terms() -> None:
    terms = Wishes(cap=1, wall="1min", acceptance=3, within="2h", auction="5s").make_terms(0)
    assert (terms.segment_wall, terms.windows.acceptance) == (60_000, 3_000)
    assert (terms.within, terms.auction) == (7_200_000, 5_000)
    plain = Wishes(cap=1).make_terms(0)
    assert (plain.within, plain.auction) == (None, AUCTION_MS)


def test_wishes_are_told_from_arguments_by_name() -> None:
    wishes, rest = split_wishes(Wishes(seed=1), {"memory": "1GiB", "colour": "red", "cap": None})
    assert (wishes.memory, wishes.seed, wishes.cap, rest) == ("1GiB", 1, None, {"colour": "red"})


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, requester; print(sorted({'aiohttp', 'numpy', 'cloudpickle', 'msgspec'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="nonsense"):
        _ = requester.nonsense
