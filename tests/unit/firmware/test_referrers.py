# SPDX-License-Identifier: Apache-2.0
"""Lists of referrers: pages, lists that lie, and many writers at once of whom none may be lost."""

import threading
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_pipeline.errors import Reason
from firmware_pipeline.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor, Index, sha256_digest, to_json
from firmware_pipeline.referrers import MAX_PAGES, MAX_REFERRERS, add_to_fallback_tag, fallback_tag, next_page
from firmware_pipeline.registry import RegistryStore
from firmware_pipeline.signing.keys import TrustedKey
from firmware_pipeline.signing.policy import VerificationPolicy
from firmware_pipeline.signing.sign import sign
from firmware_pipeline.signing.verify import verify
from firmware_pipeline.tag_lists import MAX_ROUNDS, add_to_list
from tests.unit.firmware import attach_workers
from tests.unit.firmware.builds import refused
from tests.unit.firmware.hostile_registry import HostileRegistry
from tests.unit.firmware.signed import P256, put_bundle, put_index, trust
from tests.unit.firmware.test_registry import store_for

WRITERS = 8


def entry(number: int) -> Descriptor:
    return Descriptor(media_type=MANIFEST_TYPE, digest=sha256_digest(b"%d" % number), size=number)


# ---- pages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("", None),
        ('</v2/a/referrers/x?n=1>; rel="next"', "/v2/a/referrers/x?n=1"),
        ("</x>; rel=next", "/x"),
        ('</x>; title="a, b"; rel="next"', "/x"),
        ('</first>; rel="prev", </x>; rel="next"', "/x"),
        ('</x>; rel="prev"', None),
        ('</x>; rel="nextish"', None),
        ("</x>", None),
        ("/x; rel=next", None),
        ('</x; rel="next"', None),
        ("<" + "x" * 5000 + '>; rel="next"', None),
    ],
)
def test_where_the_list_goes_on(link: str, target: str | None) -> None:
    assert next_page(link) == target


@given(st.text(alphabet='<>;,= "relnxt/', max_size=80))
def test_any_link_header_is_read_or_ignored(link: str) -> None:
    found = next_page(link)
    assert found is None or f"<{found}>" in link


def attach_many(store: RegistryStore, count: int) -> tuple[Descriptor, set[str]]:
    subject, _ = put_index(store)
    return subject, {put_bundle(store, subject, b"%d" % number) for number in range(count)}


@pytest.mark.parametrize("page", [1, 3, 10])
def test_all_pages_are_read(page: int) -> None:
    with HostileRegistry(referrers_api=True, answer_subject=True, referrers_page=page) as registry:
        store = store_for(registry, push=True)
        subject, digests = attach_many(store, 7)
        assert {found.digest for found in store.referrers(subject.digest)} == digests
        assert len(registry.requests("GET", "/referrers/")) == -(-7 // page)


def test_a_list_that_goes_on_at_another_host_is_not_followed() -> None:
    with (
        HostileRegistry() as elsewhere,
        HostileRegistry(
            referrers_api=True, answer_subject=True, referrers_page=2, referrers_link=f"{elsewhere.url}/v2/x"
        ) as registry,
    ):
        store = store_for(registry, push=True)
        subject, _ = attach_many(store, 3)
        refused(Reason.RedirectRefused, lambda: store.referrers(subject.digest))
        assert elsewhere.seen == []


def test_a_list_without_end_is_left() -> None:
    with HostileRegistry(referrers_api=True, answer_subject=True, referrers_page=1) as registry:
        store = store_for(registry, push=True)
        subject, _ = attach_many(store, 1)
        registry.knobs.referrers_link = f"/v2/team/porch/referrers/{subject.digest}?from=0"
        refused(Reason.TooLarge, lambda: store.referrers(subject.digest))
        assert len(registry.requests("GET", "/referrers/")) <= MAX_PAGES


def test_more_entries_than_are_looked_at_on_many_pages() -> None:
    with HostileRegistry(referrers_api=True, answer_subject=True, referrers_page=30) as registry:
        store = store_for(registry, push=True)
        subject, _ = attach_many(store, MAX_REFERRERS + 1)
        refused(Reason.TooLarge, lambda: store.referrers(subject.digest))


# ---- lists that lie --------------------------------------------------------------------------------------


def test_entries_that_a_writer_described_wrongly_are_opened() -> None:
    with HostileRegistry() as registry:
        store = store_for(registry, push=True)
        subject, _ = put_index(store)
        sign(store, subject, P256, "porch")
        del registry.tags[subject.digest.replace(":", "-") + ".sig"]
        [true] = store.referrers(subject.digest)
        lie = true.model_copy(update={"artifact_type": "application/vnd.oci.empty.v1+json", "annotations": {}})
        raw = to_json(Index(schema_version=2, manifests=[lie]))
        store.put_manifest(raw, INDEX_TYPE, tag=fallback_tag(subject.digest))
        assert verify(store, subject.digest, VerificationPolicy(trust(P256))).signers == ("key0",)


def test_a_list_that_names_what_refers_to_something_else() -> None:
    with HostileRegistry() as registry:
        store = store_for(registry, push=True)
        signed, _ = put_index(store, "signed")
        victim, _ = put_index(store, "victim")
        sign(store, signed, P256, "porch")
        for found in store.referrers(signed.digest):
            add_to_fallback_tag(store, victim.digest, found)
        refused(Reason.UnsignedArtifact, lambda: verify(store, victim.digest, VerificationPolicy(trust(P256))))


# ---- many writers ----------------------------------------------------------------------------------------


def test_threads_that_attach_at_once_lose_nothing() -> None:
    with HostileRegistry() as registry:
        subject, _ = put_index(store_for(registry, push=True))
        ready = threading.Barrier(WRITERS)

        def work(number: int) -> str:
            store = store_for(registry, push=True)
            ready.wait()
            sign(store, subject, attach_workers.signer(number), "porch")
            return put_bundle(store, subject, b"%d" % number)

        with ThreadPoolExecutor(WRITERS) as pool:
            digests = set(pool.map(work, range(WRITERS)))
        _all_there(registry, subject, WRITERS, digests)


def test_processes_that_attach_at_once_lose_nothing() -> None:
    with HostileRegistry() as registry:
        subject, _ = put_index(store_for(registry, push=True))
        context = attach_workers.CONTEXT
        barrier = context.Barrier(WRITERS)
        workers = [
            context.Process(target=attach_workers.attach_and_sign, args=(registry.host, subject, number, barrier))
            for number in range(WRITERS)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
        assert [worker.exitcode for worker in workers] == [0] * WRITERS
        _all_there(registry, subject, WRITERS)


def _all_there(registry: HostileRegistry, subject: Descriptor, count: int, digests: Set[str] = frozenset()) -> None:
    store = store_for(registry)
    found = {item.digest for item in store.referrers(subject.digest)}
    assert len(found) == 2 * count
    assert digests <= found
    keys = [TrustedKey(f"key{number}", attach_workers.signer(number).public_key) for number in range(count)]
    assert len(verify(store, subject.digest, VerificationPolicy(keys, count)).signers) == count


class SharedList:
    """A tag that anybody may overwrite; `on_read` and `on_sleep` are what the others do meanwhile."""

    def __init__(self, locks: Path) -> None:
        self.entries: list[Descriptor] = []
        self.writes = 0
        self.sleeps: list[float] = []
        self.on_read: Callable[[int], None] = lambda _: None
        self.on_sleep: Callable[[int], None] = lambda _: None
        self._locks = locks
        self._reads = 0

    def add(self, item: Descriptor) -> None:
        add_to_list("a tag", item, self.read, self.write, same=lambda d: d.digest, locks=self._locks, sleep=self.sleep)

    def read(self) -> list[Descriptor]:
        self._reads += 1
        self.on_read(self._reads)
        return list(self.entries)

    def write(self, entries: list[Descriptor]) -> None:
        self.writes += 1
        self.entries = entries

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.on_sleep(len(self.sleeps))


@pytest.fixture
def shared(tmp_path: Path) -> SharedList:
    return SharedList(tmp_path / "locks")


def test_rule_3_one_writer_writes_once_and_looks_again_after_a_while(shared: SharedList) -> None:
    shared.add(entry(1))
    shared.add(entry(1))
    assert shared.entries == [entry(1)]
    assert (shared.writes, len(shared.sleeps)) == (1, 1)
    assert 0 < shared.sleeps[0] <= 1


def test_rule_2_what_another_machine_overwrites_before_we_look_comes_back(shared: SharedList) -> None:
    shared.on_read = lambda count: shared.write([entry(2)]) if count == 2 else None
    shared.add(entry(1))
    assert {item.size for item in shared.entries} == {1, 2}


def test_rule_2_what_is_overwritten_after_we_looked_comes_back_too(shared: SharedList) -> None:
    shared.on_sleep = lambda count: shared.write([entry(2)]) if count == 1 else None
    shared.add(entry(1))
    assert {item.size for item in shared.entries} == {1, 2}
    assert len(shared.sleeps) == 2


def test_rule_2_what_others_lose_is_put_back_by_whoever_saw_it(shared: SharedList) -> None:
    shared.write([entry(3)])
    shared.on_sleep = lambda count: shared.write([entry(2)]) if count == 1 else None
    shared.add(entry(1))
    assert {item.size for item in shared.entries} == {1, 2, 3}


def test_others_who_never_stop_end_in_an_error(shared: SharedList) -> None:
    shared.on_read = lambda count: shared.write([entry(1000 + count)])
    refused(Reason.RegistryBusy, lambda: shared.add(entry(1)))
    assert shared.writes <= 2 * MAX_ROUNDS + 1


@given(st.lists(st.tuples(st.sampled_from(["read", "sleep"]), st.integers(1, 4), st.integers(2, 6)), max_size=5))
def test_whatever_others_do_a_few_times_ours_is_there_in_the_end(
    tmp_path_factory: pytest.TempPathFactory, others: list[tuple[str, int, int]]
) -> None:
    shared = SharedList(tmp_path_factory.getbasetemp() / "locks")

    def overwrite(what: str, count: int) -> None:
        for kind, when, number in others:
            if (kind, when) == (what, count):
                shared.entries = [entry(number)]

    shared.on_read = lambda count: overwrite("read", count)
    shared.on_sleep = lambda count: overwrite("sleep", count)
    shared.add(entry(1))
    assert entry(1) in shared.entries


def test_a_lock_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "locks"
    folder.mkdir()
    monkeypatch.setattr("os.getuid", lambda: folder.stat().st_uid + 1)
    refused(Reason.StorageFailed, lambda: SharedList(folder).add(entry(1)))
