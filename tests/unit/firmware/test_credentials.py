# SPDX-License-Identifier: Apache-2.0
"""Credential helpers: real programs, asked within bounds, and only on behalf of the person whose configuration it is."""

import json
import os
import re
from pathlib import Path

import pytest

from firmware_pipeline.credential_helpers import MAX_ANSWER_BYTES, ask_helper
from firmware_pipeline.credentials import Credential, Credentials, load_credentials
from firmware_pipeline.errors import Reason
from firmware_pipeline.http_rules import ClientOptions
from firmware_pipeline.reference import parse_reference
from firmware_pipeline.registry import RegistryStore
from tests.unit.firmware.builds import refused
from tests.unit.firmware.hostile_registry import HostileRegistry
from tests.unit.firmware.test_registry import put_index

LOGIN = {"ServerURL": "host", "Username": "ci", "Secret": "s3cret"}


class Helpers:
    """A directory on PATH with helper programs, and a home with the configuration that names them."""

    def __init__(self, root: Path) -> None:
        self.bin, self.home, self.log = root / "bin", root / "home", root / "asked"
        (self.home / ".docker").mkdir(parents=True)
        self.bin.mkdir()
        self.config = self.home / ".docker" / "config.json"
        self.environment = {"PATH": f"{self.bin}:/usr/bin:/bin"}

    def program(self, name: str, script: str) -> None:
        path = self.bin / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\nhost=$(cat)\necho \"{name} $1 $host\" >> '{self.log}'\n{script}\n")
        path.chmod(0o755)

    def knows(self, name: str, **login: str) -> None:
        self.program(name, f"echo '{json.dumps(LOGIN | login)}'")

    def configure(self, **document: object) -> None:
        self.config.write_text(json.dumps(document))
        self.config.chmod(0o600)

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def load(self) -> Credentials:
        return load_credentials(self.environment, home=self.home)


@pytest.fixture
def helpers(tmp_path: Path) -> Helpers:
    return Helpers(tmp_path)


def test_the_helper_of_a_host_comes_before_auths_and_the_store_after(helpers: Helpers) -> None:
    helpers.knows("vault")
    helpers.knows("keychain", Username="store")
    helpers.configure(
        credHelpers={"host": "vault"},
        credsStore="keychain",
        auths={"host": {"username": "file", "password": "x"}, "other": {"username": "file", "password": "x"}},
    )
    found = helpers.load()
    users = [getattr(found.find(host, "a/b"), "username", None) for host in ("host", "other", "third:5000")]
    assert users == ["ci", "file", "store"]
    assert helpers.asked == ["vault get host", "keychain get third:5000"]
    found.find("host", "c")
    assert len(helpers.asked) == 2, "one question per host"


def test_an_identity_token_is_recognised(helpers: Helpers) -> None:
    helpers.knows("vault", Username="<token>", Secret="r3fresh")
    helpers.configure(credsStore="vault")
    assert helpers.load().find("host", "a") == Credential(identity_token="r3fresh")


def test_no_login_means_anonymous(helpers: Helpers) -> None:
    helpers.program("vault", "echo 'credentials not found in native keychain'; exit 1")
    helpers.configure(credsStore="vault")
    found = helpers.load()
    assert found.find("host", "a") is None
    assert "knows no login" in found.hint("host")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'the key store is locked' ; exit 1", "locked"),
        ("exit 3", "said nothing"),
        ("echo no json", "no login"),
        ("echo '[]'", "no login"),
        ('echo \'{"Username": 5, "Secret": "x"}\'', "no login"),
        ('echo \'{"Username": "", "Secret": "x"}\'', "no login"),
        (f"head -c {MAX_ANSWER_BYTES + 1} /dev/zero", "no login"),
        ("exec sleep 60", "within 0.2 s"),
    ],
)
def test_a_helper_that_fails_is_an_error(helpers: Helpers, script: str, said: str) -> None:
    helpers.program("vault", script)
    error = refused(Reason.CredentialsMalformed, lambda: ask_helper("vault", "host", helpers.environment, seconds=0.2))
    assert said in error.message
    assert "docker-credential-vault" in error.message


@pytest.mark.parametrize("name", ["../../bin/evil", "a b", "a;b", "A", "", "-x", "a\n"])
def test_what_is_no_name_is_not_run(helpers: Helpers, name: str) -> None:
    refused(Reason.CredentialsMalformed, lambda: ask_helper(name, "host", helpers.environment))


def test_a_helper_that_is_not_there_is_an_error_only_when_it_is_needed(helpers: Helpers) -> None:
    helpers.configure(credsStore="gone")
    with HostileRegistry() as registry:
        put_index(registry)
        store = RegistryStore(parse_reference(f"{registry.host}/team/porch"), ClientOptions(helpers.load(), True))
        store.resolve("1")
        registry.knobs.auth = "basic"
        error = refused(Reason.CredentialsMalformed, lambda: store.resolve("1"))
        assert "not on PATH" in error.message


def test_the_login_of_a_helper_opens_a_registry(helpers: Helpers) -> None:
    helpers.knows("vault")
    helpers.configure(credsStore="vault")
    with HostileRegistry(auth="token", username="ci", password="s3cret") as registry:
        put_index(registry)
        options = ClientOptions(helpers.load(), plain_http=True)
        RegistryStore(parse_reference(f"{registry.host}/team/porch"), options).resolve("1")
        assert helpers.asked == [f"vault get {registry.host}"]


def test_in_a_pod_no_helper_runs(helpers: Helpers) -> None:
    helpers.knows("vault")
    helpers.configure(credsStore="vault", credHelpers={"host": "vault"})
    found = load_credentials({**helpers.environment, "DOCKER_CONFIG": str(helpers.config.parent)})
    assert found.find("host", "a") is None
    assert "not run" in found.hint("host")
    assert helpers.asked == []


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_starts_no_program(helpers: Helpers, mode: int) -> None:
    helpers.knows("vault")
    helpers.configure(credsStore="vault")
    helpers.config.chmod(mode)
    assert helpers.load().find("host", "a") is None
    assert helpers.asked == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_starts_no_program(helpers: Helpers) -> None:
    helpers.knows("vault")
    helpers.configure(credsStore="vault")
    os.chown(helpers.config, 65534, 65534)
    assert helpers.load().find("host", "a") is None
    assert helpers.asked == []


@pytest.mark.parametrize("document", [{"credsStore": 5}, {"credHelpers": {"host": None}}, {"credHelpers": ["x"]}, []])
def test_a_configuration_that_names_no_names_is_refused(helpers: Helpers, document: object) -> None:
    helpers.config.write_text(json.dumps(document))
    error = refused(Reason.CredentialsMalformed, helpers.load)
    assert re.search(r"config\.json", error.message)
