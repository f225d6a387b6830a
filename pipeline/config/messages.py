"""Validation messages: one line for each refused key, with the values that the JSON schema of the type allows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from components.registry import nearest, similar
from pipeline.config.renamed import new_name

_TYPES = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
_BOUNDS = {
    "minimum": "of at least",
    "exclusiveMinimum": "above",
    "maximum": "of at most",
    "exclusiveMaximum": "below",
    "multipleOf": "divisible by",
}

Node = Mapping[str, Any]
"""A part of a JSON schema; {} allows everything."""


class LeftOverError(ValueError):
    """A mapping has a key that belongs to another kind of the mapping, because DVC's ``-S`` merges mappings."""


def refusals(kind: Any, values: Mapping[str, Any], error: ValidationError, section: str = "") -> list[str]:
    """Formats one line for each refused key: the key, the value and the allowed values.

    Args:
        kind: type, or adapter of a type, that refused the values.
        values: plain values.
        error: error that pydantic raised.
        section: dotted key of the values; "" for the whole file.
    """
    adapter: TypeAdapter[Any] = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
    schema = Schema(adapter.json_schema(by_alias=True))
    lines: dict[str, str] = {}
    of_another_kind: dict[str, list[str]] = {}
    missing, suggested = [], set()

    def dotted(path: Sequence[str]) -> str:
        return ".".join([*([section] if section else []), *path])

    for item in error.errors():
        # Members of unions add parts to the location that are not keys.
        node, path, value = schema.walk(item["loc"], values)
        key = dotted(path)
        if item["loc"][-1:] == ("[key]",):
            name, (node, path, _) = item["loc"][-2], schema.walk(item["loc"][:-2], values)
            key = dotted(path)
            lines.setdefault(key, f"{key}: name {name!r}: use {schema.expected(schema.names_of(node))}")
        elif item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            *parents, last = path
            known = schema.keys_of(schema.walk(parents, values)[0])
            if last in known:  # the key belongs to another kind of the section
                of_another_kind.setdefault(".".join(parents), []).append(last)
                continue
            if renamed := new_name(key):
                lines[key] = f"{key}: was renamed to {renamed}"
                suggested.add(renamed)
                continue
            lines[key] = f"{key}: unknown{nearest(last, known) or '; there are no settings here'}"
            suggested |= {dotted([*parents, match]) for match in similar(last, known)}
        elif item["type"] == "missing" and isinstance(value, list):
            lines.setdefault(key, f"{key}: {value!r}: use {schema.expected(node)}")
        elif item["type"] == "missing":
            missing.append(dotted([*path, str(item["loc"][-1])]))
        elif item["type"] in ("union_tag_not_found", "union_tag_invalid"):
            context = {name: str(text).replace("'", "") for name, text in item["ctx"].items()}
            key = f"{key}.{context['discriminator']}"
            if item["type"] == "union_tag_not_found":
                missing.append(key)
            else:
                lines[key] = f"{key}: '{context['tag']}': use one of {context['expected_tags']}"
        elif item["type"] == "value_error":
            text = str(item["ctx"]["error"])
            left_over = isinstance(item["ctx"]["error"], LeftOverError)
            # The text of the settings of a member begins with the name of a field.
            joint = "." if section and not path and text.partition(":")[0] in schema.keys_of(node) else ": "
            lines[key] = f"{key}{joint}{text}{_replacing(key) if left_over else ''}"
        else:
            choices = [str(choice) for choice in schema.choices(node)]
            hint = nearest(value, choices) if isinstance(value, str) and similar(value, choices) else ""
            lines.setdefault(key, f"{key}: {value!r}: use {schema.expected(node)}{hint}")
    for parent, names in of_another_kind.items():
        kept = [name for name in schema.walk(parent.split("."), values)[2] if name not in names]
        key = dotted([parent])
        lines[key] = f"{key}: {', '.join(names)}: cannot be used together with {', '.join(kept)}{_replacing(key)}"
    lines |= {key: f"{key}: missing; add it" for key in missing if key not in suggested}
    # The message about a part of a value is more specific than the message that the whole value matches no other member
    # of a union.
    return [line for key, line in lines.items() if not any(other.startswith(f"{key}.") for other in lines)]


def _replacing(key: str) -> str:
    """Returns a hint on how to replace a mapping instead of adding keys to it."""
    return f"; dvc exp run -S adds keys to a mapping; to replace the mapping: -S '~{key}' -S '+{key}={{...}}'"


class Schema:
    """A JSON schema. A type can describe its values itself, in the keyword ``expected``."""

    def __init__(self, root: Node) -> None:
        self._root = root

    def walk(self, location: Iterable[int | str], value: Any) -> tuple[Node, list[str], Any]:
        """Follows a location of pydantic through the schema and the values.

        Parts of the location that are not in the values are skipped. The walk ends at a type with a description.

        Returns:
            (node, path, value) at the end of the walk.
        """
        node, path = self._resolved(self._root), list[str]()
        for part in map(str, location):
            if isinstance(value, Mapping) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                continue
            node = self._child(node, part)
            path.append(part)
            if _described(node):
                break
        return node, path, value

    def expected(self, node: Node) -> str:
        """Describes the values that a node allows, for example ``auto or a whole number of at least 1``."""
        if described := _described(node):
            return described
        if members := self._members(node):
            return " or ".join(self.expected(member) for member in members)
        if choices := [str(choice) for choice in self.choices(node)]:
            *others, last = choices
            return f"{', '.join(others)} or {last}" if others else last
        if keys := self.keys_of(node):
            return f"a section with the keys {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        bounds = [f"{words} {node[bound]}" for bound, words in _BOUNDS.items() if bound in node]
        bounds += (
            ["that is not empty"] if node.get("minLength") or node.get("minItems") or node.get("minProperties") else []
        )
        return " ".join(filter(None, (_TYPES.get(node.get("type", ""), "another value"), " and ".join(bounds))))

    def choices(self, node: Node) -> list[Any]:
        """Returns the words that a node allows; a list without words if it allows other values."""
        if members := self._members(node):
            return [choice for member in members for choice in self.choices(member)]
        return [node["const"]] if "const" in node else list(node.get("enum", []))

    def keys_of(self, node: Node) -> list[str]:
        """Returns the keys that a section may have; an empty list if any key is allowed."""
        if members := self._members(node):
            return list(dict.fromkeys(key for member in members for key in self.keys_of(member)))
        return list(node.get("properties", ()))

    def names_of(self, node: Node) -> Node:
        """Returns the node of the keys of a mapping."""
        for member in self._members(node) or [node]:
            if "propertyNames" in member:
                return self._resolved(member["propertyNames"])
        return {"type": "string"}

    def _child(self, node: Node, part: str) -> Node:
        """Returns the node of a key of a section or mapping, or of an item of a list; {} if there is no such key."""
        if members := self._members(node):
            return next(filter(None, (self._child(member, part) for member in members)), {})
        if part in node.get("properties", ()):
            return self._resolved(node["properties"][part])
        if part.isdigit() and int(part) < len(node.get("prefixItems", ())):
            return self._resolved(node["prefixItems"][int(part)])
        for inner in ("additionalProperties", "items"):
            if isinstance(node.get(inner), Mapping):
                return self._resolved(node[inner])
        return {}

    def _members(self, node: Node) -> list[Node]:
        return [self._resolved(member) for member in node.get("anyOf", node.get("oneOf", ()))]

    def _resolved(self, node: Node) -> Node:
        if "$ref" not in node:
            return node
        target = self._root["$defs"][node["$ref"].rpartition("/")[2]]
        return {**target, **{key: value for key, value in node.items() if key != "$ref"}}


def _described(node: Node) -> str | None:
    """Returns the description that a type has of itself; a number or a range is recognised by its shape."""
    if "expected" in node:
        return str(node["expected"])
    kinds = [member.get("type") for member in node.get("anyOf", ()) if member.get("type") != "null"]
    if len(kinds) == 2 and kinds[1] == "array" and kinds[0] in ("number", "integer"):
        what = "a number or a range" if kinds[0] == "number" else "a whole number or a range of them"
        return f"{what} [lowest, highest]"
    return None
