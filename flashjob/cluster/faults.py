# SPDX-License-Identifier: Apache-2.0
"""What may go wrong with a request to the in-memory cluster: errors, lost answers, and the caller's own death."""

from dataclasses import dataclass
from typing import Final

from .resources import Resource

_WRITES: Final = ("create", "apply", "replace", "patch", "delete")


class Crash(BaseException):
    """The process under test ends here: not an Exception, so that no handler of ours mistakes it for trouble."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it arrived."""

    verb: str
    resource: Resource
    namespace: str
    name: str
    subresource: str = ""


@dataclass(slots=True)
class Fault:
    """Fails requests that match: the first `skip` pass, the next `times` fail.

    Args:
        error: what the caller sees.
        verb: list, watch, get, create, apply, replace, patch, delete, token, raw; "write" is any that changes
            something; "" is any.
        resource: the collection; None is any.
        name: the object; "" is any.
        skip: matching requests that pass first.
        times: how many fail.
        after: the request takes effect first and only its answer is lost.
    """

    error: BaseException
    verb: str = ""
    resource: Resource | None = None
    name: str = ""
    skip: int = 0
    times: int = 1
    after: bool = False

    def matches(self, call: Call) -> bool:
        """Whether this request is one of those."""
        wanted = _WRITES if self.verb == "write" else (self.verb,)
        return (
            (not self.verb or call.verb in wanted)
            and self.resource in (None, call.resource)
            and self.name in ("", call.name)
        )
