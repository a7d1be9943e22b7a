"""Each house rule can fail: every row breaks one rule, and has a neighbour that keeps it."""

from __future__ import annotations

import pytest

from tests.house import imports, rules, texts
from tests.house.rules import Rule, Source


def lines(count: int) -> str:
    return "x = 1\n" * count


def function(body_lines: int) -> str:
    return "def f() -> None:\n" + "    x = 1\n" * body_lines


DOC = '"""Doc."""\n'

# rule, what breaks it, its neighbour that does not
ROWS: list[tuple[Rule, str, str]] = [
    (rules.find_long_file, lines(501), lines(500)),
    (rules.find_long_functions, function(70), function(69)),
    (rules.find_long_functions, "class A:\n    async " + function(70).replace("\n", "\n    "), lines(100)),
    (rules.find_missing_docstrings, "x = 1\n", DOC),
    (rules.find_missing_docstrings, DOC + "def f(): ...\n", DOC + "def _f(): ...\n"),
    (rules.find_missing_docstrings, DOC + "async def f(): ...\n", DOC + f"async def f():\n    {DOC}"),
    (rules.find_missing_docstrings, DOC + "class A: ...\n", DOC + f"class A:\n    {DOC}    def __init__(self): ...\n"),
    (
        rules.find_missing_docstrings,
        DOC + f"class A:\n    {DOC}    def f(self): ...\n",
        DOC + f"class A:\n    {DOC}    @typing.override\n    def f(self): ...\n",
    ),
    (rules.find_ambient_reads, "import time\ntime.monotonic()\n", "now = 1\n"),
    (rules.find_ambient_reads, "from time import time as clock\nclock()\n", "time = clock\n"),
    (rules.find_ambient_reads, "import datetime as d\nd.datetime.now()\n", "import datetime as d\nd.timedelta(1)\n"),
    (
        rules.find_ambient_reads,
        "from datetime import date\ndate.today()\n",
        "from datetime import date\ndate(1, 2, 3)\n",
    ),
    (rules.find_ambient_reads, "import os\nread = os.environ.get\n", "import os\nos.fspath(x)\n"),
    (rules.find_ambient_reads, "import os.path\nos.urandom(3)\n", "import os.path\nos.path.join(x)\n"),
    (rules.find_ambient_reads, "from os import environ\nenviron['A']\n", "environ = {}\nenviron['A']\n"),
    (rules.find_ambient_reads, "def f():\n    import random\n    random.random()\n", "self.random.random()\n"),
    (rules.find_ambient_reads, "import numpy as np\nnp.random.default_rng()\n", "import numpy as np\nnp.zeros(3)\n"),
    (
        rules.find_ambient_reads,
        "from nacl.signing import SigningKey\nSigningKey.generate()\n",
        "from nacl.signing import SigningKey\nSigningKey(seed)\n",
    ),
    (rules.find_unportable, "import fcntl\n", "import sys\nif sys.platform != 'win32':\n    import fcntl\n"),
    (rules.find_unportable, "def f():\n    from resource import x\n", "from .resource_plan import x\n"),
    (rules.find_leftovers, "x = 1  # TODO later\n", "x = 1  # later\n"),
    (rules.find_leftovers, '"""FIXME."""\n', '"""Fix me."""\n'),
    (rules.find_uncovered, "x = 1  # pragma: no cover\n", "if TYPE_CHECKING:  # pragma: no cover\n    pass\n"),
    (rules.find_uncovered, "raise E  # pragma: no cover\n", "assert_never(x)  # pragma: no cover\n"),
    (rules.find_bare_ignores, "x = 1  # type: ignore\n", "x = 1  # type: ignore[attr]  # untyped library\n"),
    (rules.find_bare_ignores, "x = 1  # type: ignore[attr]\n", "x = '# type: ignore'\n"),
    (rules.find_bare_ignores, "x = 1  # noqa\n", "x = 1  # noqa: S301  # inside the sandbox\n"),
    (rules.find_bare_ignores, "x = 1  # noqa: S301\n", "x = 1  # noqa: S301, E501  # inside the sandbox\n"),
    (rules.find_bare_ignores, "x = 1  # noqa: S301  # why\n", "x = 1  # no quarrel with it\n"),
]


@pytest.mark.parametrize(("rule", "bad", "good"), ROWS)
def test_rule_bites(rule: Rule, bad: str, good: str) -> None:
    assert list(rule(Source("chain.ledger.example", bad)))
    assert list(rule(Source("chain.ledger.example", good))) == []


def test_every_rule_has_a_row() -> None:
    assert {rule for rule, _, _ in ROWS} | {rules.find_nameless_module} == {*rules.RULES, rules.find_unportable}


def test_a_module_must_be_named_for_its_content() -> None:
    assert list(rules.find_nameless_module(Source("chain.base.utils", "")))
    assert not list(rules.find_nameless_module(Source("chain.base.utilisation", "")))


@pytest.mark.parametrize("shell", rules.SHELLS)
def test_a_shell_may_read_the_clock_and_its_neighbour_may_not(shell: str) -> None:
    text = "import time\ntime.time()\n"
    assert not list(rules.find_ambient_reads(Source(shell, text)))
    assert not list(rules.find_ambient_reads(Source(f"{shell}.part", text)))
    assert list(rules.find_ambient_reads(Source(f"{shell}x", text)))


CYCLES = {
    "plain": {"a.x": "import a.y", "a.y": "from a import x"},
    "inside a function": {"a.x": "def f():\n    import a.y", "a.y": "import a.x"},
    "for types only": {"a.x": "if TYPE_CHECKING:\n    from a.y import Y", "a.y": "import a.x"},
    "by a name of the package": {"a": "from a.x import f", "a.x": "from a import g"},
    "relative": {"a": "", "a.x": "from . import y", "a.y": "from .x import f"},
    "relative in a package": {"a": "", "a.b": "from .c import f", "a.b.c": "from ..b import g"},
    "of three": {"a.x": "import a.y", "a.y": "import a.z", "a.z": "import a.x"},
}


@pytest.mark.parametrize("texts_by_name", CYCLES.values(), ids=CYCLES)
def test_an_import_cycle_is_found(texts_by_name: dict[str, str]) -> None:
    sources = [Source(name, text) for name, text in texts_by_name.items()]
    assert imports.find_cycle(imports.build_graph(sources))


def test_a_chain_of_imports_is_no_cycle() -> None:
    chain = {"a": '"""Doc."""', "a.x": "import a.y\nimport os", "a.y": "from a import z", "a.z": "import json"}
    assert imports.find_cycle(imports.build_graph(Source(name, text) for name, text in chain.items())) == []


def test_what_loads_is_followed_through_packages() -> None:
    texts_by_name = {"a": "", "a.x": "import b.y", "b": "import c", "b.y": "", "c": "", "d": "import a.x"}
    graph = imports.build_graph(Source(name, text) for name, text in texts_by_name.items())
    assert imports.find_reachable(graph, ["a"]) == {"a", "a.x", "b", "b.y", "c"}


def test_a_package_outside_the_layers_is_found() -> None:
    layers = ["(a.x) | (a.y)", "a.z"]
    assert imports.find_unlayered(["a", "a.x.deep", "a.y", "a.z"], layers) == []
    assert imports.find_unlayered(["a", "a.new.deep"], layers) == ["a.new"]


@pytest.mark.parametrize(
    "text",
    [
        "see https://py" + "pi.org/simple",
        "https://files.python" + "hosted.org/x",
        "http://deb.deb" + "ian.org",
        "--index" + "-url https://x",
        "--find" + "-links here",
        "in /home" + "/ann/code",
        "in /ro" + "ot/.cache",
        "in /wo" + "rk/main",
    ],
)
def test_a_forbidden_text_is_found(text: str) -> None:
    assert list(texts.find_forbidden_text(f"first line\n{text}\n")) != []


def test_plain_text_is_not_forbidden() -> None:
    text = "the PyPI package, requirements -i, /home/you/data, index-url\nin the root, at work\n"
    assert list(texts.find_forbidden_text(text)) == []
