# SPDX-License-Identifier: Apache-2.0
"""The registry adapter against a registry that is right, and against one that is wrong in every way it can be."""

import ssl
import subprocess
import sys
import threading
from io import BytesIO
from pathlib import Path

import pytest

from firmware_pipeline.credentials import Credential, Credentials
from firmware_pipeline.errors import Reason
from firmware_pipeline.http_rules import ClientOptions, Limits
from firmware_pipeline.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor, Index, Manifest, to_json
from firmware_pipeline.reference import parse_reference
from firmware_pipeline.registry import RegistryStore
from firmware_pipeline.store import Blob, BlobReceiver
from tests.unit.firmware.builds import refused
from tests.unit.firmware.certificates import authority
from tests.unit.firmware.hostile_registry import HostileRegistry, digest_of
from tests.unit.firmware.registry_zoo import answers

DATA = bytes(range(256)) * 1200
QUICK = Limits(first_pause_seconds=0.001)
IMPATIENT = Limits(read_seconds=0.3, attempts=3, first_pause_seconds=0.001)
SECRET = Credential("ci", "s3cret")


def store_for(
    registry: HostileRegistry,
    *,
    credential: Credential | None = None,
    push: bool = False,
    trusted: frozenset[str] = frozenset(),
    limits: Limits = QUICK,
    sleeps: list[float] | None = None,
    repository: str = "team/porch",
    plain_http: bool = True,
    ca_file: Path | None = None,
) -> RegistryStore:
    explicit = {registry.host: credential} if credential else {}
    options = ClientOptions(Credentials(explicit), plain_http, ca_file, trusted, limits)
    waits = sleeps if sleeps is not None else []
    reference = parse_reference(f"{registry.host}/{repository}:1")
    return RegistryStore(reference, options, push=push, sleep=waits.append)


def put(registry: HostileRegistry, data: bytes = DATA) -> Descriptor:
    registry.blobs[digest_of(data)] = data
    return Descriptor(media_type="application/octet-stream", digest=digest_of(data), size=len(data))


def put_index(registry: HostileRegistry, tag: str = "1") -> bytes:
    raw = to_json(Index(schema_version=2, manifests=[], annotations={"made-for": tag}))
    registry.manifests[digest_of(raw)] = (INDEX_TYPE, raw)
    registry.tags[tag] = digest_of(raw)
    return raw


# ---- the right registry ----------------------------------------------------------------------------------


@pytest.mark.parametrize("auth", ["none", "basic", "token"])
@pytest.mark.parametrize("size", [0, 1, len(DATA)])
def test_what_was_pushed_can_be_pulled(tmp_path: Path, auth: str, size: int) -> None:
    with HostileRegistry(auth=auth, username="ci", password="s3cret") as registry:
        blob = Blob.of(DATA[:size])
        writer = store_for(registry, credential=SECRET, push=True)
        writer.put_blob(blob)
        raw = to_json(Index(schema_version=2, manifests=[]))
        digest = writer.put_manifest(raw, INDEX_TYPE)
        assert writer.put_manifest(raw, INDEX_TYPE, tag="2.1.0") == digest

        reader = store_for(registry, credential=SECRET)
        assert reader.resolve("2.1.0") == digest
        assert reader.get_manifest(digest).raw == raw
        steps: list[tuple[int, int]] = []
        target = tmp_path / "deep" / "app.bin"
        descriptor = Descriptor(media_type="x/y", digest=blob.digest, size=size)
        reader.save_blob(descriptor, target, lambda done, total: steps.append((done, total)))
        assert target.read_bytes() == DATA[:size] == reader.read_blob(descriptor, max_bytes=size)
        assert not size or steps[-1] == (size, size)
        assert [path.name for path in target.parent.iterdir()] == ["app.bin"]


def test_a_file_is_streamed_with_its_length_and_progress(tmp_path: Path) -> None:
    source = tmp_path / "app.bin"
    source.write_bytes(DATA * 3)
    with HostileRegistry() as registry:
        steps: list[int] = []
        store_for(registry, push=True).put_blob(Blob.of(source), lambda done, total: steps.append(done))
        sent = registry.requests("PUT")[0]
        assert sent.headers["content-length"] == str(len(DATA) * 3)
        assert "transfer-encoding" not in sent.headers
        assert len(steps) > 2
        assert steps[-1] == len(DATA) * 3
        store_for(registry, push=True).put_blob(Blob.of(source))
        assert len(registry.requests("PUT")) == 1, "content that is there is not sent again"


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_2xx_is_success(status: int) -> None:
    with HostileRegistry(put_status=status) as registry:
        store_for(registry, push=True).put_blob(Blob.of(DATA))
        assert registry.blobs[digest_of(DATA)] == DATA


def test_manifests_are_asked_for_with_their_types() -> None:
    with HostileRegistry() as registry:
        raw = put_index(registry)
        assert store_for(registry).get_manifest("1").raw == raw
        accept = registry.requests("GET", "/manifests/1")[0].headers["accept"]
        assert INDEX_TYPE in accept
        assert MANIFEST_TYPE in accept
        assert "docker" in accept


def test_of_oras_only_the_names_are_used() -> None:
    program = "import sys, firmware_pipeline.registry; print(*(m for m in sys.modules if m.startswith('oras')))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert set(shown.split()) == {"oras", "oras.container", "oras.defaults", "oras.version"}


# ---- wrong content: nothing is kept ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("tamper", Reason.DigestMismatch),
        ("short", Reason.SizeMismatch),
        ("long", Reason.SizeMismatch),
        ("endless", Reason.SizeMismatch),
        ("hang", Reason.RegistryTimeout),
        ("trickle", Reason.RegistryTimeout),
    ],
)
def test_a_wrong_blob_is_refused_and_leaves_nothing(tmp_path: Path, kind: str, reason: Reason) -> None:
    with HostileRegistry(blob=kind) as registry:
        descriptor = put(registry)
        store = store_for(registry, limits=IMPATIENT if reason is Reason.RegistryTimeout else QUICK)
        refused(reason, lambda: store.save_blob(descriptor, tmp_path / "app.bin"))
        assert list(tmp_path.iterdir()) == []
        refused(reason, lambda: store.read_blob(descriptor, max_bytes=len(DATA)))


@pytest.mark.parametrize(
    ("kind", "selector", "reason"),
    [
        ("tamper", "digest", Reason.DigestMismatch),
        ("tamper", "1", Reason.DigestMismatch),
        ("other", "digest", Reason.DigestMismatch),
        ("html", "digest", Reason.MediaTypeUnsupported),
        ("endless", "1", Reason.TooLarge),
    ],
)
def test_a_wrong_manifest_is_refused(kind: str, selector: str, reason: Reason) -> None:
    with HostileRegistry(manifest=kind) as registry:
        put_index(registry, "2")
        raw = put_index(registry, "1")
        name = digest_of(raw) if selector == "digest" else selector
        refused(reason, lambda: store_for(registry).get_manifest(name))


def test_a_registry_that_stored_something_else_is_noticed() -> None:
    with HostileRegistry(stored_digest="sha256:" + "0" * 64) as registry:
        store = store_for(registry, push=True)
        refused(Reason.DigestMismatch, lambda: store.put_blob(Blob.of(DATA)))
        refused(Reason.DigestMismatch, lambda: store.put_manifest(b'{"schemaVersion":2}', INDEX_TYPE))


def test_a_download_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    with HostileRegistry(blob="cut") as registry:
        descriptor = put(registry)
        store_for(registry).save_blob(descriptor, tmp_path / "app.bin")
        assert (tmp_path / "app.bin").read_bytes() == DATA
        assert [seen.headers.get("range") for seen in registry.requests("GET")] == [None, f"bytes={len(DATA) // 2}-"]


def test_a_download_begins_again_where_ranges_are_unknown(tmp_path: Path) -> None:
    with HostileRegistry(blob="cut-no-range") as registry:
        descriptor = put(registry)
        store_for(registry).save_blob(descriptor, tmp_path / "app.bin")
        assert (tmp_path / "app.bin").read_bytes() == DATA


def test_more_than_allowed_is_never_fetched() -> None:
    with HostileRegistry() as registry:
        descriptor = put(registry)
        refused(Reason.TooLarge, lambda: store_for(registry).read_blob(descriptor, max_bytes=100))
        assert registry.seen == []


@pytest.mark.parametrize(
    "digest", ["sha256:../../x", "sha256:" + "A" * 64, "md5:" + "0" * 64, "sha256:" + "0" * 64 + "\n"]
)
def test_a_digest_that_is_none_never_becomes_a_path(digest: str) -> None:
    with HostileRegistry() as registry:
        refused(Reason.ReferenceMalformed, lambda: store_for(registry).get_manifest(digest))
        refused(Reason.ReferenceMalformed, lambda: store_for(registry).has_blob(digest, 1))
        assert registry.seen == []


def test_unknown_content_is_not_found() -> None:
    with HostileRegistry() as registry:
        error = refused(Reason.ReferenceNotFound, lambda: store_for(registry).resolve("9.9"))
        assert "9.9" in error.message
        assert "\x1b" not in error.message


# ---- waiting ---------------------------------------------------------------------------------------------


def test_retry_after_is_obeyed_and_bounded() -> None:
    with HostileRegistry(busy=2, retry_after="7") as registry:
        put_index(registry)
        sleeps: list[float] = []
        store_for(registry, sleeps=sleeps).resolve("1")
        assert sleeps == [7.0, 7.0]
        registry.knobs.busy, registry.knobs.retry_after = 1, "3600"
        sleeps.clear()
        error = refused(Reason.RegistryBusy, lambda: store_for(registry, sleeps=sleeps).resolve("1"))
        assert sleeps == []
        assert "3600" in error.message


@pytest.mark.parametrize(
    ("status", "reason"),
    [(429, Reason.RegistryBusy), (500, Reason.RegistryUnreachable), (503, Reason.RegistryUnreachable)],
)
def test_a_registry_that_stays_busy_ends_in_an_error(status: int, reason: Reason) -> None:
    with HostileRegistry(busy=99, busy_status=status, retry_after=None) as registry:
        sleeps: list[float] = []
        refused(reason, lambda: store_for(registry, sleeps=sleeps).resolve("1"))
        assert len(sleeps) == QUICK.attempts - 1
        assert len(registry.seen) == QUICK.attempts


def test_pushes_are_tried_again_from_their_start() -> None:
    with HostileRegistry() as registry:
        store = store_for(registry, push=True)
        registry.knobs.busy = 1
        store.put_blob(Blob.of(DATA))
        registry.knobs.busy = 1
        store.put_manifest(to_json(Index(schema_version=2, manifests=[])), INDEX_TYPE)
        assert registry.blobs[digest_of(DATA)] == DATA


def test_no_registry_at_all() -> None:
    with HostileRegistry() as registry:
        store = store_for(registry)
    sleeps: list[float] = []
    store._sleep = sleeps.append
    error = refused(Reason.RegistryUnreachable, lambda: store.resolve("1"))
    assert len(sleeps) == QUICK.attempts - 1
    assert sum(sleeps) < 1
    assert "127.0.0.1" in error.message


def test_https_is_the_default_and_never_falls_back_to_http() -> None:
    with HostileRegistry() as registry:
        put_index(registry)
        error = refused(Reason.RegistryUnreachable, lambda: store_for(registry, plain_http=False).resolve("1"))
        assert "--plain-http" in error.next_step
        assert registry.seen == []


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    return authority(tmp_path)


def test_tls_needs_an_authority_that_we_trust(certificate: tuple[ssl.SSLContext, Path]) -> None:
    context, ca_file = certificate
    with HostileRegistry(tls=context, auth="token", username="ci", password="s3cret") as registry:
        raw = put_index(registry)
        good = store_for(registry, credential=SECRET, plain_http=False, ca_file=ca_file)
        assert good.resolve("1") == digest_of(raw)
        asked = len(registry.seen)
        stranger = store_for(registry, credential=SECRET, plain_http=False)
        error = refused(Reason.RegistryUnreachable, lambda: stranger.resolve("1"))
        assert "TLS" in error.message
        assert "--ca-file" in error.next_step
        assert len(registry.seen) == asked


def test_tls_is_left_neither_for_a_realm_nor_for_a_redirect(certificate: tuple[ssl.SSLContext, Path]) -> None:
    context, ca_file = certificate
    with HostileRegistry() as plain, HostileRegistry(tls=context, username="ci", password="s3cret") as registry:
        put_index(registry)
        descriptor = put(registry)
        store = store_for(registry, credential=SECRET, plain_http=False, ca_file=ca_file)
        registry.knobs.blob_redirect = plain.url
        refused(Reason.RedirectRefused, lambda: store.read_blob(descriptor, max_bytes=len(DATA)))
        registry.knobs.auth, registry.knobs.realm = "token", f"{plain.url}/token"
        refused(Reason.ForeignRealm, lambda: store.resolve("1"))
        assert plain.seen == []


# ---- secrets ---------------------------------------------------------------------------------------------


def test_a_push_token_is_asked_for_up_front_and_shared() -> None:
    with HostileRegistry(auth="token", username="ci", password="s3cret") as registry:
        store = store_for(registry, credential=SECRET, push=True)
        store.put_blob(Blob.of(DATA))
        store.put_manifest(to_json(Index(schema_version=2, manifests=[])), INDEX_TYPE)
        tokens = registry.requests("GET", "/token")
        assert len(tokens) == 1
        assert "pull%2Cpush" in tokens[0].path


def test_threads_share_one_token() -> None:
    with HostileRegistry(auth="token", username="ci", password="s3cret") as registry:
        descriptor, store = put(registry), store_for(registry, credential=SECRET)
        results: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: results.append(store.read_blob(descriptor, max_bytes=len(DATA))))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [DATA] * 8
        assert len(registry.requests("GET", "/token")) == 1


def test_a_token_that_the_registry_no_longer_takes_is_replaced() -> None:
    with HostileRegistry(auth="token") as registry:
        put_index(registry)
        store = store_for(registry)
        store.resolve("1")
        registry.knobs.revoke_tokens = 1
        store.resolve("1")
        assert len(registry.requests("GET", "/token")) == 2


def test_an_expired_token_is_not_sent() -> None:
    with HostileRegistry(auth="token", token_seconds=0.0001) as registry:
        put_index(registry)
        store = store_for(registry)
        store.resolve("1")
        store.resolve("1")
        manifests = registry.requests("GET", "/manifests/1")
        assert [bool(seen.authorization) for seen in manifests] == [False, True, False, True]


def test_an_identity_token_is_exchanged() -> None:
    with HostileRegistry(auth="token", username="ci", password="x", extra={"refresh_token": "r3fresh"}) as registry:
        put_index(registry)
        store_for(registry, credential=Credential(identity_token="r3fresh")).resolve("1")
        assert [seen.method for seen in registry.requests("POST", "/token")] == ["POST"]


@pytest.mark.parametrize("auth", ["basic", "token"])
@pytest.mark.parametrize("credential", [None, Credential("ci", "wrong")])
def test_a_refused_login_says_so_at_once(auth: str, credential: Credential | None) -> None:
    with HostileRegistry(auth=auth, username="ci", password="s3cret") as registry:
        put_index(registry)
        sleeps: list[float] = []
        store = store_for(registry, credential=credential, sleeps=sleeps)
        error = refused(Reason.RegistryUnauthorized, lambda: store.resolve("1"))
        assert sleeps == []
        assert "wrong" not in str(error)


def test_rule_1_no_secret_from_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("default login eve password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with HostileRegistry() as registry:
        put_index(registry)
        store_for(registry).resolve("1")
        assert registry.secrets_seen() == []


def test_rule_2_a_foreign_realm_never_sees_the_credential() -> None:
    with (
        HostileRegistry(auth="none") as thief,
        HostileRegistry(auth="token", username="ci", password="s3cret") as registry,
    ):
        registry.knobs.realm = thief.url.replace("127.0.0.1", "localhost") + "/token"
        put_index(registry)
        error = refused(Reason.ForeignRealm, lambda: store_for(registry, credential=SECRET).resolve("1"))
        assert "localhost" in error.message
        assert thief.seen == []
        trusting = store_for(registry, credential=SECRET, trusted=frozenset({"localhost"}))
        refused(Reason.RegistryUnauthorized, lambda: trusting.resolve("1"))
        assert thief.requests("GET", "/token"), "a host that is named as trusted may be asked"


def test_rule_3_a_redirect_to_another_host_carries_no_secret(tmp_path: Path) -> None:
    with (
        HostileRegistry() as storage,
        HostileRegistry(auth="basic", username="ci", password="s3cret") as registry,
    ):
        registry.knobs.blob_redirect = storage.url
        descriptor = put(registry)
        put(storage)
        store_for(registry, credential=SECRET).save_blob(descriptor, tmp_path / "app.bin")
        assert (tmp_path / "app.bin").read_bytes() == DATA
        assert storage.secrets_seen() == []
        assert registry.secrets_seen()


def test_rule_3_what_a_redirect_leads_to_is_checked_like_everything(tmp_path: Path) -> None:
    with HostileRegistry(blob="tamper") as storage, HostileRegistry(blob_redirect=storage.url) as registry:
        descriptor = put(registry)
        put(storage)
        refused(Reason.DigestMismatch, lambda: store_for(registry).save_blob(descriptor, tmp_path / "app.bin"))
        assert list(tmp_path.iterdir()) == []


def test_rule_3_endless_redirects_and_redirected_uploads_are_refused() -> None:
    with HostileRegistry() as registry:
        registry.knobs.upload_redirect = registry.url
        refused(Reason.RedirectRefused, lambda: store_for(registry, push=True).put_blob(Blob.of(DATA)))
        assert registry.blobs == {}


def test_rule_4_an_upload_to_another_host_is_refused() -> None:
    with (
        HostileRegistry() as thief,
        HostileRegistry(auth="basic", username="ci", password="s3cret", upload_location=thief.url) as registry,
    ):
        store = store_for(registry, credential=SECRET, push=True)
        refused(Reason.ForeignUpload, lambda: store.put_blob(Blob.of(DATA)))
        assert thief.seen == []


def test_a_token_answer_without_token_is_refused() -> None:
    for answer in ({"token": "a\r\nX: y"}, {"token": 5}, {"expires_in": 5}, {"token": "t", "expires_in": -1}):
        with HostileRegistry(auth="token", extra={"token_answer": answer}) as registry:
            put_index(registry)
            refused(Reason.RegistryProtocol, lambda registry=registry: store_for(registry).resolve("1"))  # type: ignore[misc]


# ---- referrers -------------------------------------------------------------------------------------------


def attach(store: RegistryStore, subject: Descriptor, note: str) -> str:
    empty = Blob.of(b"{}")
    store.put_blob(empty)
    raw = to_json(
        Manifest(
            schema_version=2,
            artifact_type="application/example",
            config=Descriptor(media_type="application/vnd.oci.empty.v1+json", digest=empty.digest, size=2),
            layers=[],
            subject=subject,
            annotations={"note": note},
        )
    )
    return store.put_manifest(raw, MANIFEST_TYPE)


@pytest.mark.parametrize(("api", "answers"), [(True, True), (True, False), (False, False)])
def test_referrers_are_found_with_and_without_the_api(api: bool, answers: bool) -> None:
    with HostileRegistry(referrers_api=api, answer_subject=answers) as registry:
        store = store_for(registry, push=True)
        raw = put_index(registry)
        subject = Descriptor(media_type=INDEX_TYPE, digest=digest_of(raw), size=len(raw))
        digests = {attach(store, subject, note) for note in "abc"}
        assert {entry.digest for entry in store.referrers(subject.digest)} == digests
        assert store.referrers("sha256:" + "1" * 64) == []


def test_a_lost_update_of_the_fallback_tag_is_repaired() -> None:
    with HostileRegistry() as registry:
        store = store_for(registry, push=True)
        raw = put_index(registry)
        subject = Descriptor(media_type=INDEX_TYPE, digest=digest_of(raw), size=len(raw))
        tag = subject.digest.replace(":", "-")
        attach(store, subject, "first")
        before = registry.tags[tag]
        lost: list[str] = []

        def overwrite(written: str) -> None:
            if written == tag and not lost:
                lost.append(registry.tags[tag])
                registry.tags[tag] = before

        registry.on_tag = overwrite
        attach(store, subject, "second")
        assert len(lost) == 1
        assert len(store.referrers(subject.digest)) == 2


def test_writers_that_always_win_end_in_an_error() -> None:
    with HostileRegistry() as registry:
        store = store_for(registry, push=True)
        raw = put_index(registry)
        subject = Descriptor(media_type=INDEX_TYPE, digest=digest_of(raw), size=len(raw))
        registry.on_tag = registry.tags.__delitem__
        refused(Reason.RegistryBusy, lambda: attach(store, subject, "never"))


def test_a_receiver_takes_not_one_byte_too_many() -> None:
    sink = BytesIO()
    receiver = BlobReceiver(Descriptor(media_type="x", digest=digest_of(b"abc"), size=3), sink)
    receiver.write(b"ab")
    refused(Reason.SizeMismatch, lambda: receiver.write(b"cd"))
    refused(Reason.SizeMismatch, receiver.finish)
    assert sink.getvalue() == b"ab"


# ---- uploads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "reason"),
    [(DATA[::-1], Reason.DigestMismatch), (DATA[:-1], Reason.SizeMismatch), (DATA + b"!", Reason.SizeMismatch)],
)
def test_what_changed_on_the_disk_is_never_stored(tmp_path: Path, after: bytes, reason: Reason) -> None:
    source = tmp_path / "app.bin"
    source.write_bytes(DATA)
    blob = Blob.of(source)
    source.write_bytes(after)
    with HostileRegistry() as registry:
        refused(reason, lambda: store_for(registry, push=True).put_blob(blob))
    assert registry.blobs == {}


@pytest.mark.parametrize(("status", "taken"), [(201, True), (202, False), (404, False), (403, False), (405, False)])
def test_a_blob_of_another_repository_is_mounted_where_the_registry_does_that(status: int, taken: bool) -> None:
    with HostileRegistry() as registry:
        descriptor = put(registry)
        registry.script = answers("/uploads/?mount=", status, method="POST")
        target, source = store_for(registry, push=True), store_for(registry, repository="team/other")
        assert target.mount_blob(descriptor, source) is taken
        assert [seen.path.partition("?")[2] for seen in registry.seen] == [
            f"mount={descriptor.digest.replace(':', '%3A')}&from=team%2Fother"
        ]


def test_nothing_is_mounted_from_another_registry() -> None:
    with HostileRegistry() as registry, HostileRegistry() as other:
        descriptor, target = put(registry), store_for(registry, push=True)
        assert not target.mount_blob(descriptor, store_for(other))
        assert not target.mount_blob(descriptor, store_for(registry))
        assert registry.seen == other.seen == []
