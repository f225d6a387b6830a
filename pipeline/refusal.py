"""Why values were refused: one line a key that says what would be right, as the typed models themselves describe it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

_TYPES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


class LeftOverError(ValueError):
    """A mapping has a key that was right with the mapping's other kind: DVC's ``-S`` merges mappings."""


def refusals(model: Any, values: Mapping[str, Any], error: ValidationError) -> list[str]:
    """One line for each key of ``values`` that ``model`` refused: the key, the value and what would be right."""
    lines: dict[str, str] = {}
    of_another_kind: dict[str, list[str]] = {}
    missing, suggested = [], set()
    for item in error.errors():
        # Members of unions add parts to the location that are no keys.
        node, path, value = _walk(model, item["loc"], values)
        key = ".".join(path)
        if item["loc"][-1:] == ("[key]",):
            name, (node, path, _) = item["loc"][-2], _walk(model, item["loc"][:-2], values)
            lines.setdefault(".".join(path), f"{'.'.join(path)}: name {name!r}: use {expected(_name_type(node))}")
        elif item["type"] in ("extra_forbidden", "invalid_key"):
            *section, last = path if item["type"] == "extra_forbidden" else [*path, str(item["loc"][-1])]
            known, key = _keys(_walk(model, section, values)[0]), ".".join([*section, last])
            if last in known:  # the section is of one kind, the key of another
                of_another_kind.setdefault(".".join(section), []).append(last)
                continue
            lines[key] = f"{key}: unknown{nearest(last, known)}"
            suggested |= {".".join([*section, match]) for match in _matches(last, known)}
        elif item["type"] == "missing":
            missing.append(".".join([*path, str(item["loc"][-1])]))
        elif item["type"] in ("union_tag_not_found", "union_tag_invalid"):
            context = {name: str(text).replace("'", "") for name, text in item["ctx"].items()}
            key = f"{key}.{context['discriminator']}"
            if item["type"] == "union_tag_not_found":
                missing.append(key)
            else:
                lines[key] = f"{key}: '{context['tag']}': use one of {context['expected_tags']}"
        elif item["type"] == "value_error":
            left_over = isinstance(item["ctx"]["error"], LeftOverError)
            lines[key] = f"{key}: {item['ctx']['error']}{_replacing(key) if left_over else ''}"
        else:
            choices = [str(choice) for choice in _choices(node)]
            hint = nearest(value, choices) if isinstance(value, str) and _matches(value, choices) else ""
            lines.setdefault(key, f"{key}: {value!r}: use {expected(node)}{hint}")
    for key, names in of_another_kind.items():
        kept = [name for name in _walk(model, key.split("."), values)[2] if name not in names]
        lines[key] = f"{key}: {', '.join(names)}: unknown beside {', '.join(kept)}{_replacing(key)}"
    lines |= {key: f"{key}: missing; add it" for key in missing if key not in suggested}
    # A refused part of a value says more than that the whole fits no other member of a union.
    return [line for key, line in lines.items() if not any(other.startswith(f"{key}.") for other in lines)]


def _replacing(key: str) -> str:
    """How to be rid of keys that were there before."""
    return f"; dvc exp run -S adds to a mapping, -S '~{key}' -S '+{key}={{...}}' replaces it"


def expected(node: Any) -> str:
    """What a type allows, in words: ``auto or a whole number of at least 1``."""
    if described := _description(node):
        return described
    kind, metadata = _unwrapped(node)
    if get_origin(kind) is Literal:
        *others, last = (str(choice) for choice in get_args(kind))
        return f"{', '.join(others)} or {last}" if others else last
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(expected(member) for member in get_args(kind))
    if _is_model(kind):
        keys = _keys(kind)
        return f"a section of {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
    bounds = " and ".join(_bounds(metadata))
    return " ".join(filter(None, (_TYPES.get(get_origin(kind) or kind, "another type"), bounds)))


def nearest(word: str, known: Sequence[str]) -> str:
    """``; did you mean X?`` for the known name most like ``word``, else the known names, else nothing."""
    if match := _matches(word, known):
        return f"; did you mean {match[0]}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _walk(node: Any, location: Iterable[int | str], value: Any) -> tuple[Any, list[str], Any]:
    """(type, path, value) of the deepest part of a location that the values hold and no description covers."""
    path: list[str] = []
    for part in map(str, location):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            continue
        node = _child(node, part)
        path.append(part)
        if _description(node):
            break
    return node, path, value


def _child(node: Any, part: str) -> Any:
    """The type of a key of a model or mapping, or of an item of a list; None where there is no such key."""
    kind, _ = _unwrapped(node)
    if _is_model(kind):
        return next((field for name, field in kind.model_fields.items() if part == (field.alias or name)), None)
    if get_origin(kind) in (Union, UnionType):
        return next(filter(None, (_child(member, part) for member in get_args(kind))), None)
    if get_origin(kind) in (dict, list):
        return get_args(kind)[-1]
    return None


def _name_type(node: Any) -> Any:
    """The type of a mapping's keys."""
    kind, _ = _unwrapped(node)
    if get_origin(kind) in (Union, UnionType):
        return next(filter(None, (_name_type(member) for member in get_args(kind))), None)
    return get_args(kind)[0] if get_origin(kind) is dict else None


def _unwrapped(node: Any) -> tuple[Any, list[Any]]:
    """(plain type, metadata) of a field or an annotated type."""
    if isinstance(node, FieldInfo):
        kind, metadata = _unwrapped(node.annotation)
        return kind, [node, *node.metadata, *metadata]
    if get_origin(node) is Annotated:
        kind, *metadata = get_args(node)
        return kind, metadata
    return node, []


def _description(node: Any) -> str | None:
    metadata = _unwrapped(node)[1]
    return next((item.description for item in metadata if isinstance(item, FieldInfo) and item.description), None)


def _bounds(metadata: Iterable[Any]) -> list[str]:
    """The constraints of a number, in words."""
    found: list[str] = []
    for item in metadata:
        match item:
            case FieldInfo():
                found += _bounds(item.metadata)
            case Ge(least):
                found.append(f"of at least {least}")
            case Gt(least):
                found.append(f"above {least}")
            case Le(most):
                found.append(f"of at most {most}")
            case Lt(most):
                found.append(f"below {most}")
            case MultipleOf(factor):
                found.append(f"divisible by {factor}")
            case MinLen():
                found.append("that is not empty")
    return list(dict.fromkeys(found))


def _choices(node: Any) -> tuple[Any, ...]:
    kind, _ = _unwrapped(node)
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return tuple(choice for member in get_args(kind) for choice in _choices(member))
    return ()


def _keys(node: Any) -> list[str]:
    """The keys that a section may have; none where any will do."""
    kind, _ = _unwrapped(node)
    if get_origin(kind) in (Union, UnionType):
        return list(dict.fromkeys(key for member in get_args(kind) for key in _keys(member)))
    return [field.alias or name for name, field in kind.model_fields.items()] if _is_model(kind) else []


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _matches(word: str, known: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(word, known, 1, 0.5)
