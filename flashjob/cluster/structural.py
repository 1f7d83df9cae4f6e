# SPDX-License-Identifier: Apache-2.0
"""What an API server does to a custom object with its structural schema: prune, default, validate.

The part of OpenAPI v3 that our CRDs use; CEL rules are the real server's to judge. The in-memory cluster uses it, so
that a write which a real server would prune or refuse does not pass there either.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

Schema = dict[str, Any]
_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


def completed(schema: Schema, value: Any) -> Any:
    """A copy of `value` without unknown fields and with the defaults of absent ones."""
    if isinstance(value, dict):
        if "properties" in schema:
            out = {name: completed(part, value[name]) for name, part in schema["properties"].items() if name in value}
            for name, part in schema["properties"].items():
                if "default" in part and out.get(name) is None:
                    out[name] = completed(part, part["default"])
            if schema.get("x-kubernetes-preserve-unknown-fields"):
                out = {**value, **out}
            return {name: part for name, part in out.items() if part is not None}
        if "additionalProperties" in schema:
            return {name: completed(schema["additionalProperties"], part) for name, part in value.items()}
        return dict(value)
    if isinstance(value, list):
        return [completed(schema.get("items", {}), part) for part in value]
    return value


def problems(schema: Schema, value: Any, path: str = "") -> Iterator[str]:
    """Every way in which `value` breaks the schema, each beginning with the field's path."""
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        yield f"{path}: must be of type {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: Unsupported value: {value!r}: supported values: {', '.join(map(str, schema['enum']))}"
    match value:
        case bool():
            pass
        case str():
            yield from _bounds(path, len(value), schema, "minLength", "maxLength", "characters")
            if "pattern" in schema and not re.search(schema["pattern"], value):
                yield f"{path}: Invalid value: {value!r}: should match {schema['pattern']!r}"
        case int() | float():
            yield from _bounds(path, value, schema, "minimum", "maximum", "")
        case list():
            yield from _bounds(path, len(value), schema, "minItems", "maxItems", "items")
            for index, part in enumerate(value):
                yield from problems(schema.get("items", {}), part, f"{path}[{index}]")
        case dict():
            yield from _bounds(path, len(value), schema, "minProperties", "maxProperties", "entries")
            for name in schema.get("required", ()):
                if name not in value:
                    yield f"{path}.{name}: Required value".lstrip(".")
            properties = schema.get("properties", {})
            for name, part in value.items():
                inner = properties.get(name, schema.get("additionalProperties"))
                if inner is not None:
                    yield from problems(inner, part, f"{path}.{name}".lstrip("."))


def _bounds(path: str, value: float, schema: Schema, low: str, high: str, unit: str) -> Iterator[str]:
    if low in schema and value < schema[low]:
        yield f"{path}: Invalid value: at least {schema[low]} {unit}".rstrip()
    if high in schema and value > schema[high]:
        yield f"{path}: Invalid value: at most {schema[high]} {unit}".rstrip()
