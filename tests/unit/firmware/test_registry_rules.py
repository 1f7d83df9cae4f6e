# SPDX-License-Identifier: Apache-2.0
"""References, credentials, and the rules of where requests may go: pure decisions, no network."""

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_pipeline import http_rules
from firmware_pipeline.credentials import Credential, Credentials, load_credentials, parse_docker_config
from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.http_rules import Challenge, ClientOptions, parse_challenge, retry_after, token_scope
from firmware_pipeline.oci import Index, Manifest, parse_document
from firmware_pipeline.reference import Reference, parse_reference
from tests.unit.firmware.builds import refused

DIGEST = "sha256:" + "ab" * 32
REGISTRY = "https://registry.example"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("registry.example/a:1", Reference("registry.example", "a", "1")),
        ("Registry.Example:5000/a/b-c_d", Reference("registry.example:5000", "a/b-c_d")),
        (f"localhost/a@{DIGEST}", Reference("localhost", "a", None, DIGEST)),
        (f"127.0.0.1:5000/a:1@{DIGEST}", Reference("127.0.0.1:5000", "a", "1", DIGEST)),
        ("[::1]:5000/a:1", Reference("[::1]:5000", "a", "1")),
        ("oci:some/dir:2.0", Reference("", "some/dir", "2.0")),
        (f"oci:/home/me@work/dir:1@{DIGEST}", Reference("", "/home/me@work/dir", "1", DIGEST)),
        (f"oci:/abs/dir@{DIGEST}", Reference("", "/abs/dir", None, DIGEST)),
    ],
)
def test_references(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected
    assert parse_reference(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "porch",
        "team/porch:1",
        "registry.example",
        "registry.example/",
        "registry.example/A:1",
        "registry.example/a:",
        "registry.example/a:-1",
        "registry.example/a@sha256:12",
        "registry.example/a@md5:" + "0" * 32,
        "registry.example/../a",
        "registry.example//a",
        "https://registry.example/a",
        "user:pw@registry.example/a",
        "registry.example/a b",
        "registry.example:99999999/a",
        "registry.example/" + "a" * 300,
        "oci:",
        "oci:x\0y",
    ],
)
def test_what_is_no_reference(text: str) -> None:
    refused(Reason.ReferenceMalformed, lambda: parse_reference(text))


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    reason = None
    try:
        found = parse_reference(text)
    except PipelineError as error:
        reason = error.reason
    assert reason is Reason.ReferenceMalformed if reason else parse_reference(str(found)) == found


# ---- credentials -----------------------------------------------------------------------------------------


def config(**auths: dict[str, str]) -> bytes:
    return json.dumps({"auths": {key.replace("__", "/"): value for key, value in auths.items()}}).encode()


def entry(user: str, password: str = "pw") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_sources_are_used_in_the_documented_order(tmp_path: Path) -> None:
    files = {
        "file": tmp_path / "explicit.json",
        "REGISTRY_AUTH_FILE": tmp_path / "auth-file.json",
        "DOCKER_CONFIG": tmp_path / "docker" / "config.json",
        "XDG_RUNTIME_DIR": tmp_path / "run" / "containers" / "auth.json",
        "home": tmp_path / "home" / ".docker" / "config.json",
    }
    for name, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(config(host=entry(name)))
    environment = {
        "REGISTRY_AUTH_FILE": str(files["REGISTRY_AUTH_FILE"]),
        "DOCKER_CONFIG": str(tmp_path / "docker"),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
    }
    order = ["explicit"]
    found = load_credentials(
        environment, home=tmp_path / "home", file=files["file"], explicit={"host": Credential("explicit")}
    )
    assert found.find("host", "a") == Credential("explicit")
    for name in files:
        explicit_file = files["file"] if name == "file" else None
        user = load_credentials(environment, home=tmp_path / "home", file=explicit_file).find("host", "a")
        order.append(user.username if user else "none")
        environment.pop(name, None)
    assert order == ["explicit", *files]
    assert load_credentials({}).find("host", "a") is None


def test_the_longest_prefix_wins_and_other_hosts_get_nothing() -> None:
    file = parse_docker_config(
        config(host=entry("host"), host__team=entry("team"), host__team__porch=entry("porch")), "test"
    )
    credentials = Credentials(files=(file,))
    users = {
        name: getattr(credentials.find("host", name), "username", None)
        for name in ("team/porch", "team/porch2", "team/a/b", "other")
    }
    assert users == {"team/porch": "porch", "team/porch2": "team", "team/a/b": "team", "other": "host"}
    assert credentials.find("host:5000", "team/porch") is None
    assert credentials.find("host.evil.example", "team/porch") is None


def test_old_and_new_spellings_and_kinds() -> None:
    raw = json.dumps(
        {
            "auths": {
                "https://Old.example/v1/": entry("old", "p:w"),
                "plain.example": {"username": "u", "password": "p"},
                "token.example": {"auth": "", "identitytoken": "idt"},
                "bearer.example": {"registrytoken": "rt"},
                "empty.example": {},
            },
            "credHelpers": {"helped.example": "x"},
            "HttpHeaders": {"X": "y"},
        }
    ).encode()
    file = parse_docker_config(raw, "test")
    table = file.auths
    assert table["old.example"] == Credential("old", "p:w")
    assert table["plain.example"] == Credential("u", "p")
    assert table["token.example"].identity_token == "idt"
    assert table["bearer.example"].registry_token == "rt"
    assert "empty.example" not in table
    assert "credential helper" in Credentials(files=(file,)).hint("helped.example")
    assert "pw" not in repr(Credential("u", "pw", "pw", "pw"))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b'{"auths": 5}',
        b'{"auths": {"h": 5}}',
        b'{"auths": {"h": {"auth": "***"}}}',
        b'{"auths": {"h": {"auth": "bm9jb2xvbg=="}}}',
        '{"auths": {"h": {"auth": "dXNlcjpwYXNzé"}}}'.encode(),
        b'{"auths": {"h": {"password": 5}}}',
        b"\xff\xfe",
    ],
)
def test_bad_credential_files_are_refused_without_showing_them(raw: bytes) -> None:
    error = refused(Reason.CredentialsMalformed, lambda: parse_docker_config(raw, "FILE"))
    assert "FILE" in error.message


def test_a_named_file_must_exist_and_a_usual_one_may(tmp_path: Path) -> None:
    refused(Reason.StorageFailed, lambda: load_credentials({}, file=tmp_path / "no"))
    refused(Reason.StorageFailed, lambda: load_credentials({"REGISTRY_AUTH_FILE": str(tmp_path / "no")}))
    assert load_credentials({"DOCKER_CONFIG": str(tmp_path / "no")}) == Credentials()


# ---- where requests may go -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Bearer realm="https://a/t",service="s",scope="x:y:z"', Challenge("bearer", "https://a/t", "s", "x:y:z")),
        ('bearer Realm=https://a/t , SERVICE="a \\"b\\""', Challenge("bearer", "https://a/t", 'a "b"')),
        ('Basic realm="x"', Challenge("basic", "x")),
        ("Negotiate", Challenge("negotiate")),
        ("", None),
    ],
)
def test_challenges(header: str, expected: Challenge | None) -> None:
    assert parse_challenge(header) == expected


@given(st.text(max_size=200))
def test_any_challenge_can_be_read(header: str) -> None:
    parse_challenge(header)


def test_the_scope_never_leaves_our_repository() -> None:
    assert token_scope("a", "pull", "repository:a:pull,push repository:b:pull") == "repository:a:pull,push"
    assert token_scope("a", "pull", "registry:catalog:* repository:ab:push repository:a:delete") == "repository:a:pull"


@pytest.mark.parametrize(
    ("realm", "plain", "trusted", "good"),
    [
        ("https://registry.example/token", False, [], True),
        ("https://registry.example:5001/token", False, [], True),
        ("http://registry.example/token", False, [], False),
        ("http://registry.example/token", True, [], True),
        ("https://auth.example/token", False, [], False),
        ("https://auth.example/token", False, ["auth.example"], True),
        ("https://registry.example.evil.example/token", False, ["example"], False),
        ("https://registry.example@evil.example/token", False, [], False),
    ],
)
def test_rule_2_realms(realm: str, plain: bool, trusted: list[str], good: bool) -> None:
    options = ClientOptions(plain_http=plain, trusted_hosts=frozenset(trusted))
    if good:
        assert http_rules.check_realm(realm, REGISTRY, options) == realm
    else:
        refused(Reason.ForeignRealm, lambda: http_rules.check_realm(realm, REGISTRY, options))


@pytest.mark.parametrize(
    "url", ["", "/token", "ftp://a/b", "file:///etc/passwd", "https://", "https://[::", "https://a:x/"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    refused(Reason.RegistryProtocol, lambda: http_rules.origin(url))


@pytest.mark.parametrize(
    ("method", "location", "hops", "good"),
    [
        ("GET", "/elsewhere", 0, True),
        ("HEAD", "https://cdn.example/x", 4, True),
        ("GET", "http://cdn.example/x", 0, False),
        ("GET", "https://cdn.example/x", 5, False),
        ("PUT", "/elsewhere", 0, False),
        ("POST", "https://cdn.example/x", 0, False),
    ],
)
def test_rule_3_redirects(method: str, location: str, hops: int, good: bool) -> None:
    def follow() -> str:
        return http_rules.check_redirect(method, REGISTRY + "/v2/", location, hops, ClientOptions())

    if good:
        assert follow().startswith("https://")
    else:
        refused(Reason.RedirectRefused, follow)


def test_rule_3_plain_http_does_not_allow_a_downgrade() -> None:
    options = ClientOptions(plain_http=True)
    refused(
        Reason.RedirectRefused, lambda: http_rules.check_redirect("GET", REGISTRY, "http://cdn.example/x", 0, options)
    )


@pytest.mark.parametrize(
    ("location", "trusted", "good"),
    [
        ("/v2/a/uploads/1", [], True),
        ("https://registry.example/v2/1", [], True),
        ("https://REGISTRY.example:443/v2/1", [], True),
        ("http://registry.example/v2/1", [], False),
        ("https://registry.example:444/v2/1", [], False),
        ("https://up.example/1", [], False),
        ("https://up.example/1", ["up.example"], True),
        ("http://up.example/1", ["up.example"], False),
        ("//up.example/1", [], False),
    ],
)
def test_rule_4_uploads(location: str, trusted: list[str], good: bool) -> None:
    options = ClientOptions(trusted_hosts=frozenset(trusted))
    if good:
        http_rules.check_upload(location, REGISTRY, options)
    else:
        refused(Reason.ForeignUpload, lambda: http_rules.check_upload(location, REGISTRY, options))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("", None),
        (None, None),
    ],
)
def test_rule_5_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, datetime(2026, 1, 1, tzinfo=UTC)) == seconds


# ---- documents -------------------------------------------------------------------------------------------


@given(st.binary(max_size=400))
def test_garbage_is_never_a_document(raw: bytes) -> None:
    for model in (Manifest, Index):
        refused(Reason.ArtifactMalformed, lambda model=model: parse_document(model, raw, "garbage"))  # type: ignore[misc]


@pytest.mark.parametrize(
    "raw",
    [
        b'{"schemaVersion":2,"schemaVersion":2,"manifests":[]}',
        b'{"schemaVersion":2.0,"manifests":[]}',
        b'{"schemaVersion":1,"manifests":[]}',
        b'{"schemaVersion":2,"manifests":[{"mediaType":"a","digest":"sha256:00","size":1}]}',
        b'{"schemaVersion":2,"manifests":[{"mediaType":"a","digest":"%b","size":-1}]}' % DIGEST.encode(),
        b'{"schemaVersion":2,"manifests":[{"mediaType":"a","digest":"%b","size":"1"}]}' % DIGEST.encode(),
        b'{"schemaVersion":2,"manifests":[{"media_type":"a","digest":"%b","size":1}]}' % DIGEST.encode(),
        b'{"schemaVersion":2,"manifests":[{"mediaType":"a","digest":"%b\\n","size":1}]}' % DIGEST.encode(),
        b'{"schemaVersion":2,"manifests":[],"annotations":{"a":NaN}}',
        b'{"schemaVersion":2,"manifests":[],"annotations":{"a":5}}',
        b"[" * 100000,
    ],
)
def test_documents_are_strict(raw: bytes) -> None:
    refused(Reason.ArtifactMalformed, lambda: parse_document(Index, raw, "document"))
