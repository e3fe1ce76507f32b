"""How a recipe's file is read, and how what is wrong with it is said. Knows YAML, TOML and pydantic's errors.

YAML is read by the rules of its version 1.2: only true and false are truth values ("off" is a text), and 1e-3 is a
number. A key that is given twice is refused.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from alignstar.errors import OptionError


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of what is a truth value or a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are distinct texts."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise OptionError(f"line {line}: the key {key_node.value} is no text; put it in quotes.")
            if key in seen:
                raise OptionError(f"line {line} gives {key!r} a second time; leave one of them out.")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)


def read_file(path: Path) -> Mapping[str, Any]:
    """The file's keys and values. Raises OptionError, with the line where there is one."""
    if path.suffix not in (".yaml", ".yml", ".toml"):
        raise OptionError(f"Recipe {str(path)!r} must end in .yaml, .yml or .toml; rename it.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise OptionError(f"Recipe {str(path)!r} cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"Recipe {str(path)!r} is not UTF-8 text; save it as UTF-8.") from error
    try:
        read: Any = tomllib.loads(text) if path.suffix == ".toml" else yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = 0 if error.problem_mark is None else error.problem_mark.line + 1
        raise OptionError(f"{path}: line {line} is no YAML ({error.problem}); correct it.") from error
    except yaml.YAMLError as error:
        raise OptionError(f"{path}: this is no YAML ({error}); correct it.") from error
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"{path}: this is no TOML ({error}); correct it.") from error
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from None
    if not isinstance(read, dict):
        raise OptionError(f"{path}: a recipe is keys with values, beginning with name: ...; write those.")
    return read


def refused(error: ValidationError, schema: type[BaseModel], *, name: str) -> OptionError:
    """What to raise for the first of pydantic's complaints: where, what, the rule, and the nearest known key."""
    first = error.errors()[0]
    path = [part for part in first["loc"] if not str(part).startswith(("function-", "list[", "nullable", "dict["))]
    where = ".".join(str(part) for part in path)
    if first["type"] == "extra_forbidden":
        known = sorted(_fields_at(schema, path[:-1]))
        near = difflib.get_close_matches(str(path[-1]), known, n=1)
        hint = f"did you mean {near[0]}? Known" if near else "known"
        return OptionError(f"{name}: {where!r} is unknown; {hint}: {', '.join(known)}.")
    if first["type"] == "missing":
        return OptionError(f"{name}: {where!r} is missing; add it.")
    said = first["msg"].replace("Input should", "must")
    rule = said[0].lower() + said[1:]
    return OptionError(f"{name}: {where}={first['input']!r} {rule}; correct it.")


def _fields_at(schema: type[BaseModel], path: list[int | str]) -> set[str]:
    """The keys that the section at `path` may have."""
    for part in path:
        if isinstance(part, str) and part in schema.model_fields:
            inner = _section_of(schema.model_fields[part].annotation)
            schema = schema if inner is None else inner
    return set(schema.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section inside a type such as list[Section] or Section | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_of(part) for part in get_args(annotation))
    return next((section for section in found if section is not None), None)
