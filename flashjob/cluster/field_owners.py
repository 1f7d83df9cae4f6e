# SPDX-License-Identifier: Apache-2.0
"""Who owns which field of an object in server-side apply, as the in-memory cluster keeps it. Every list is atomic."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .resources import Obj

Path = tuple[str, ...]
_MISSING = object()


@dataclass(slots=True)
class FieldOwners:
    """Owned leaf paths, by (manager, operation); operation is Apply or Update."""

    owned: dict[tuple[str, str], set[Path]] = field(default_factory=dict)

    def wrote(self, manager: str, old: Obj, new: Obj, operation: str) -> None:
        """A PUT, patch or create: what it changed is now this manager's alone, what it removed is nobody's."""
        before, after = dict(_leaves(_owned_part(old))), dict(_leaves(_owned_part(new)))
        changed = {path for path, value in after.items() if before.get(path, _MISSING) != value}
        removed = before.keys() - after.keys()
        for paths in self.owned.values():
            paths -= changed | removed
        self.owned.setdefault((manager, operation), set()).update(changed)

    def conflicts(self, manager: str, content: Obj, current: Obj) -> list[Path]:
        """Fields that an apply would change although another manager owns them."""
        present = dict(_leaves(_owned_part(current)))
        foreign = {path for (owner, _), paths in self.owned.items() if owner != manager for path in paths}
        return sorted(
            path for path, value in _leaves(content) if path in foreign and present.get(path, _MISSING) != value
        )

    def apply(self, manager: str, content: Obj, current: Obj) -> Obj:
        """Apply to `current`, which is changed and returned: set, take over, and remove what is no longer wanted."""
        wanted = dict(_leaves(content))
        mine = self.owned.get((manager, "Apply"), set())
        others = {path for key, paths in self.owned.items() if key != (manager, "Apply") for path in paths}
        present = dict(_leaves(_owned_part(current)))
        for path in mine - wanted.keys() - others:
            _unset(current, path)
        for path, value in wanted.items():
            if present.get(path, _MISSING) != value:
                for paths in self.owned.values():
                    paths.discard(path)
            _set(current, path, value)
        self.owned[manager, "Apply"] = set(wanted)
        return current


def merged(target: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386): a copy of `target` with `patch` in it; null removes."""
    if not isinstance(patch, dict):
        return patch
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merged(out.get(key), value)
    return out


def _owned_part(obj: Obj) -> Obj:
    metadata = obj.get("metadata", {})
    kept = {key: metadata[key] for key in ("labels", "annotations", "finalizers", "ownerReferences") if key in metadata}
    return {**{key: value for key, value in obj.items() if key not in ("apiVersion", "kind")}, "metadata": kept}


def _leaves(value: Obj, prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    for key, part in value.items():
        if isinstance(part, dict) and part:
            yield from _leaves(part, (*prefix, key))
        elif not (isinstance(part, dict) and prefix == () and key == "metadata"):
            yield (*prefix, key), part


def _set(obj: Obj, path: Path, value: Any) -> None:
    for step in path[:-1]:
        inner = obj.get(step)
        obj[step] = inner = dict(inner) if isinstance(inner, dict) else {}
        obj = inner
    obj[path[-1]] = value


def _unset(obj: Obj, path: Path) -> None:
    trail: list[tuple[Obj, str]] = []
    for step in path[:-1]:
        if not isinstance(obj.get(step), dict):
            return
        trail.append((obj, step))
        obj = obj[step]
    obj.pop(path[-1], None)
    for parent, step in reversed(trail):
        if not parent[step] and step not in ("metadata", "spec", "status"):
            del parent[step]
