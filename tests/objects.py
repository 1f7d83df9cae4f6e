# SPDX-License-Identifier: Apache-2.0
"""Small valid objects of every kind, for tests to vary."""

from typing import Any

from flashjob.api.meta import API_VERSION

DIGEST = "sha256:" + "1" * 64
DEVICE_ID = "01" + "11" * 32
PEM = (
    "-----BEGIN PUBLIC KEY-----\n"
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt\n"
    "6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==\n"
    "-----END PUBLIC KEY-----\n"
)


def _object(kind: str, name: str, spec: dict[str, Any], namespace: str = "", **metadata: Any) -> dict[str, Any]:
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}


def policy(name: str, namespace: str = "", **spec: Any) -> dict[str, Any]:
    """An AttestationPolicy with one signer."""
    signers = {"keys": [{"name": "ci", "publicKey": PEM}], "threshold": 1}
    return _object("AttestationPolicy", name, {"requiredSigners": signers, **spec}, namespace)


def device(name: str, namespace: str = "", device_id: str = DEVICE_ID, **spec: Any) -> dict[str, Any]:
    """A Device on a serial port, under policy "default"."""
    base: dict[str, Any] = {
        "id": device_id,
        "trustAnchor": {"coseKey": "pAECIAEhWCA"},
        "rootOfTrust": "SignedBoot",
        "policyRef": {"name": "default"},
        "connection": {"serial": {"match": {"UDEV_DEVPATH": f"/virtual/{name}"}}},
    }
    return _object("Device", name, {**base, **spec}, namespace, labels={"site": "berlin"})


def flashjob(name: str, namespace: str = "", **spec: Any) -> dict[str, Any]:
    """A FlashJob that selects by one label."""
    base: dict[str, Any] = {
        "firmware": {"image": "127.0.0.1:5000/porch-sensor:2.1.0"},
        "devices": {"selector": {"matchLabels": {"site": "berlin"}}},
    }
    return _object("FlashJob", name, {**base, **spec}, namespace)


def target(**fields: Any) -> dict[str, Any]:
    """What a task pins."""
    return {
        "repository": "127.0.0.1:5000/porch-sensor",
        "indexDigest": DIGEST,
        "manifestDigest": DIGEST,
        "configDigest": DIGEST,
        "chip": "esp32s3",
        "chipId": 9,
        "application": "porch-sensor",
        "version": "2.1.0",
        "secureVersion": 0,
        "imageSize": 1024,
        "imageDigest": DIGEST,
        "measurements": [{"scheme": "esp-image", "alg": -16, "value": "ab" * 32}],
        **fields,
    }


def flashtask(
    name: str, namespace: str = "", device_id: str = DEVICE_ID, device_name: str = "d", job: str = "j", **spec: Any
) -> dict[str, Any]:
    """A FlashTask with a target."""
    base = {
        "job": {"name": job, "uid": "job-uid"},
        "device": {"name": device_name, "id": device_id},
        "transport": "Serial",
        "target": target(),
    }
    return _object("FlashTask", name, {**base, **spec}, namespace)
