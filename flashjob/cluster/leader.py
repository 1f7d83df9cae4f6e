# SPDX-License-Identifier: Apache-2.0
"""One leader at a time, by a coordination.k8s.io Lease (the algorithm of client-go's leaderelection).

Rules (tests name them):

1. The Lease is free when it does not exist, has no holder, names us, or was not renewed for its duration *as we saw it
   by our own clock*; another's clock is never read.
2. Taking and renewing are PUTs with the resourceVersion that was read: two takers cannot both succeed.
3. Every change of holder raises leaseTransitions; that number is the epoch, and work carries it.
4. A leader that could not renew for two thirds of the duration has lost, whatever it still believes.
5. A standby watches; it does not poll.
"""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Final

from flashjob.errors import FlashJobError

from .kubeapi import ApiError, KubeApi
from .resources import LEASES, Obj

_RETRY_SECONDS: Final = 1.0


class LeadershipLost(FlashJobError):
    """Another process may lead now: stop writing at once."""

    def __init__(self, message: str) -> None:
        super().__init__(
            "LeadershipLost", message, "nothing: the process ends, and its successor starts from what is stored"
        )


class LeaderElection:
    """Acquire, then hold. The identity should outlive a restart of the container (the pod's UID).

    Args:
        api: where the Lease is.
        namespace, name: the Lease.
        identity: who we are.
        duration_seconds: how long a silent leader is believed.
        renew_seconds: how often to renew.
        now: wall clock, only ever written, never compared.
    """

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        name: str,
        identity: str,
        *,
        duration_seconds: float = 9.0,
        renew_seconds: float = 3.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.epoch = 0
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._duration = duration_seconds
        self._renew = renew_seconds
        self._now = now
        self._lease: Obj | None = None
        self._renewed = 0.0

    async def acquire(self) -> int:
        """Wait until we lead; returns the epoch."""
        observed: tuple[str, float] | None = None
        loop = asyncio.get_running_loop()
        while True:
            try:
                lease = await self._read()
                if lease is None:
                    taken = await self._api.create(LEASES, self._namespace, self._written(None))
                    return self._took(taken)
                version = lease["metadata"]["resourceVersion"]
                if observed is None or observed[0] != version:
                    observed = (version, loop.time())
                expiry = observed[1] + lease["spec"].get("leaseDurationSeconds", self._duration)
                if lease["spec"].get("holderIdentity") in (None, "", self._identity) or loop.time() >= expiry:
                    return self._took(await self._api.replace(LEASES, self._namespace, self._written(lease)))
                await self._wait_for_change(version, expiry)
            except ApiError as error:
                if not (error.conflict or error.already_exists or error.gone or error.transient):
                    raise
                if error.transient:
                    await asyncio.sleep(_RETRY_SECONDS)

    async def hold(self) -> None:
        """Renew until leadership is lost.

        Raises:
            LeadershipLost: always, in the end.
        """
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._renew)
            deadline = self._renewed + self._duration * 2 / 3
            try:
                async with asyncio.timeout_at(deadline):
                    await self._renew_once()
            except TimeoutError:
                raise self._lost("it could not be renewed in time") from None
            if loop.time() >= deadline:
                raise self._lost("it was renewed too late")

    async def release(self) -> None:
        """Give the Lease up, so that a successor need not wait. Harmless if it is no longer ours."""
        if self._lease is None:
            return
        lease, self._lease = self._lease, None
        released = {**lease, "spec": {**lease["spec"], "holderIdentity": "", "renewTime": self._stamp()}}
        try:
            await self._api.replace(LEASES, self._namespace, released)
        except ApiError as error:
            if not (error.conflict or error.not_found or error.transient):
                raise

    async def _renew_once(self) -> None:
        while True:
            try:
                lease = self._lease or await self._read()
                if lease is None or lease["spec"].get("holderIdentity") != self._identity:
                    raise self._lost("another process holds it")
                asked = asyncio.get_running_loop().time()
                self._lease = await self._api.replace(LEASES, self._namespace, self._written(lease))
                self._renewed = asked
                return
            except ApiError as error:
                self._lease = None
                if not (error.conflict or error.not_found or error.transient):
                    raise self._lost(f"it could not be renewed: {error.message}") from error
                if error.transient:
                    await asyncio.sleep(_RETRY_SECONDS)

    async def _read(self) -> Obj | None:
        try:
            return await self._api.get(LEASES, self._namespace, self._name)
        except ApiError as error:
            if error.not_found:
                return None
            raise

    async def _wait_for_change(self, version: str, expiry: float) -> None:
        stream = self._api.watch(
            LEASES, self._namespace, resource_version=version, field_selector=f"metadata.name={self._name}"
        )
        try:
            async with asyncio.timeout_at(expiry), aclosing(stream) as events:
                async for event in events:
                    if event.type != "BOOKMARK":
                        return
        except TimeoutError:
            return

    def _written(self, lease: Obj | None) -> Obj:
        spec = dict(lease["spec"]) if lease else {}
        if lease is None or spec.get("holderIdentity") != self._identity:
            spec["leaseTransitions"] = spec.get("leaseTransitions", 0) + 1
            spec["acquireTime"] = self._stamp()
        spec.update(
            holderIdentity=self._identity, leaseDurationSeconds=max(1, round(self._duration)), renewTime=self._stamp()
        )
        metadata = lease["metadata"] if lease else {"name": self._name, "namespace": self._namespace}
        return {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata, "spec": spec}

    def _took(self, lease: Obj) -> int:
        self._lease = lease
        self._renewed = asyncio.get_running_loop().time()
        self.epoch = int(lease["spec"]["leaseTransitions"])
        return self.epoch

    def _lost(self, why: str) -> LeadershipLost:
        return LeadershipLost(f"Lease {self._namespace}/{self._name}: {why}")

    def _stamp(self) -> str:
        return self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
