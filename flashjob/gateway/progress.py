# SPDX-License-Identifier: Apache-2.0
"""Per cent lives here and only here: in memory, bounded, gone with the process. Nothing is decided by it."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from flashjob.wire.gateway import Progress, TaskProgress

LIMIT: Final = 20_000
"""Most tasks remembered; the one that was silent longest goes first."""


@dataclass(slots=True)
class ProgressBoard:
    """The last progress of each live task, by namespace, job and task."""

    limit: int = LIMIT
    _entries: OrderedDict[tuple[str, str], tuple[str, TaskProgress]] = field(default_factory=OrderedDict)

    def put(self, namespace: str, job: str, task: str, progress: Progress) -> None:
        """Remember; a report of an earlier attempt than the last one is dropped."""
        key = (namespace, task)
        known = self._entries.pop(key, None)
        if known is not None and known[1].attempt > progress.attempt:
            self._entries[key] = known
            return
        entry = TaskProgress(
            task=task, attempt=progress.attempt, stage=progress.stage, done=progress.done, total=progress.total
        )
        self._entries[key] = (job, entry)
        while len(self._entries) > self.limit:
            self._entries.popitem(last=False)

    def forget(self, namespace: str, task: str) -> None:
        """Drop a task that is over."""
        self._entries.pop((namespace, task), None)

    def of_job(self, namespace: str, job: str) -> tuple[TaskProgress, ...]:
        """All that is known of one job, by task name."""
        found = (entry for (space, _), (name, entry) in self._entries.items() if space == namespace and name == job)
        return tuple(sorted(found, key=lambda entry: entry.task))
