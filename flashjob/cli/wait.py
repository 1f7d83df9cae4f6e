# SPDX-License-Identifier: Apache-2.0
"""`flashjob wait`: return at the end of a FlashJob, with an exit code that is true.

Rules (tests name them):

1. Nothing is polled: the job is watched. It must be there at the start; JobNotFound otherwise.
2. Exit 0: finished, every device proven. 1: finished otherwise. 2: not finished in time.
3. A job that goes away unfinished ends the wait: JobDeleted. One that comes after it under the same name is another
   job. One that finished and was then deleted counts as it finished.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from flashjob import terminal
from flashjob.api.flashjob import FlashJob
from flashjob.cluster.kubeapi import ApiError, KubeApi
from flashjob.cluster.login import connect
from flashjob.cluster.reflector import Key, Reflector
from flashjob.cluster.resources import FLASHJOBS
from flashjob.errors import FlashJobError
from flashjob.wire.reasons import Reason

from .view import exit_code, summary

NOT_IN_TIME = 2
"""Exit code of a wait that timed out."""

app = typer.Typer(add_completion=False)


class JobWatch:
    """The latest state of one FlashJob. Made by `follow`.

    Args:
        first: the job as first read; its uid tells it from a namesake.
        on_change: called after each change.
    """

    def __init__(self, first: FlashJob, on_change: Callable[[], None]) -> None:
        self.job = first
        self.gone = False
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        self._on_change = on_change

    def saw(self, _key: Key, _before: FlashJob | None, after: FlashJob | None) -> None:
        """A change of the collection; listener of a Reflector."""
        if self.gone:
            return
        if after is None or after.metadata.uid != self.job.metadata.uid:
            self.gone = True
        else:
            self.job = after
        self._changed.set()
        self._on_change()

    def broke(self, task: "asyncio.Task[None]") -> None:
        """The watch itself ended: nothing would be seen from now on."""
        if not task.cancelled():
            self._failure = task.exception()
            self._changed.set()
            self._on_change()

    @property
    def over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.gone or self._failure is not None or exit_code(self.job) is not None

    async def end(self) -> FlashJob:
        """The finished job. Raises FlashJobError JobDeleted (rule 3)."""
        while not self.over:
            self._changed.clear()
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure
        if exit_code(self.job) is None:
            job = self.job.metadata
            raise FlashJobError(
                Reason.JOB_DELETED,
                f"FlashJob {job.namespace}/{job.name} was deleted before it finished",
                "see who deleted it; apply it again if it is still wanted",
            )
        return self.job


@asynccontextmanager
async def follow(
    api: KubeApi, namespace: str, name: str, on_change: Callable[[], None] = lambda: None
) -> AsyncIterator[JobWatch]:
    """Keep up with one FlashJob while the block runs.

    Raises:
        FlashJobError: JobNotFound, or the API server's own refusal.
    """
    try:
        first = FlashJob.parse(await api.get(FLASHJOBS, namespace, name))
    except ApiError as error:
        if not error.not_found:
            raise
        raise FlashJobError(
            "JobNotFound", f"there is no FlashJob {namespace}/{name}", "see: kubectl get flashjobs --all-namespaces"
        ) from error
    except ValidationError as error:
        raise FlashJobError(
            "NotReadable", f"FlashJob {namespace}/{name}: {error}", "use the flashjob of the version that is installed"
        ) from error
    watch = JobWatch(first, on_change)
    reflector = Reflector(
        api, FLASHJOBS, namespace, project=FlashJob.parse, field_selector=f"metadata.name={name}", on_change=watch.saw
    )
    running = asyncio.create_task(reflector.run())
    running.add_done_callback(watch.broke)
    listed = asyncio.create_task(_missing_from_first_list(reflector, watch, (namespace, name)))
    try:
        yield watch
    finally:
        running.cancel()
        listed.cancel()
        await asyncio.gather(running, listed, return_exceptions=True)


async def _missing_from_first_list(reflector: Reflector[FlashJob], watch: JobWatch, key: Key) -> None:
    """A job that went between the first read and the first list is never reported as a change."""
    await reflector.synced.wait()
    if reflector.get(*key) is None and key not in reflector.unreadable:
        watch.saw(key, watch.job, None)


async def wait_for(api: KubeApi, namespace: str, name: str, timeout: float | None = None) -> FlashJob | None:
    """The finished job, or None when `timeout` seconds pass first. Raises FlashJobError (rules 1 and 3)."""
    try:
        async with asyncio.timeout(timeout), follow(api, namespace, name) as watch:
            return await watch.end()
    except TimeoutError:
        return None


@app.command()
def wait(
    job: Annotated[str, typer.Argument(help="Name of the FlashJob.")],
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds; without it, as long as it takes.")] = None,
    namespace: Annotated[str, typer.Option("-n", "--namespace", help="Its namespace.")] = "default",
    kubeconfig: Annotated[Path | None, typer.Option(help="The cluster's kubeconfig.")] = None,
    context: Annotated[str | None, typer.Option(help="Context in the kubeconfig.")] = None,
) -> None:
    """Wait for the end of a FlashJob.

    Exit codes: 0 finished, every device proven; 1 finished otherwise; 2 not finished in time.
    """

    async def run() -> FlashJob | None:
        api = await connect(kubeconfig, context)
        try:
            return await wait_for(api, namespace, job, timeout)
        finally:
            await api.close()

    console = terminal.console(stderr=True)
    ended = asyncio.run(run())
    if ended is None:
        console.print(f"{job}: not finished after {timeout:g} s. Next: kubectl flash watch {job}", highlight=False)
        raise typer.Exit(NOT_IN_TIME)
    console.print(summary(ended), highlight=False, markup=False, soft_wrap=True)
    code = exit_code(ended)
    raise typer.Exit(NOT_IN_TIME if code is None else int(code))
