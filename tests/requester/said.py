"""What one command said, and whether its JSON is as `tally schema` says."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema
import pytest

from requester.cli.app import run
from requester.cli.shells import read_schema


class Said:
    """What one command said, and how it ended."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        capsys.readouterr()
        self.code = run(arguments)
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def fits(self, name: str) -> Any:
        """Its one object, which has to be of this definition and of no other name."""
        check(name, self.json)
        return self.json


@cache
def load_schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(read_schema())
    return found


def check(name: str, found: Any) -> None:
    """Raise unless `found` is what the schema calls `name`."""
    schema = load_schema()
    validator = jsonschema.Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": schema["$defs"]})
    validator.validate(found)
    jsonschema.Draft202012Validator(schema).validate(found)
