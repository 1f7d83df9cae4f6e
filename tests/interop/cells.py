# SPDX-License-Identifier: Apache-2.0
"""The cells of the matrix: each runs a real tool on real content and compares bytes and digests, or raises."""

import hashlib
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from firmware_pipeline import api
from firmware_pipeline.attachments import Document, attach
from firmware_pipeline.errors import PipelineError
from firmware_pipeline.oci import INDEX_TYPE, Descriptor
from firmware_pipeline.provenance import make_provenance
from firmware_pipeline.sbom import read_sbom
from firmware_pipeline.store import BlobReceiver
from tests.interop.tools import Tool, ToolFailed
from tests.interop.world import OPTIONS, PASSWORD, PLATFORMS, World, Wrong, cosign_key

Check = Callable[[World, Tool, str], None]
"""check(world, tool, registry's name)."""


def _expect(condition: bool, problem: str) -> None:
    if not condition:
        raise Wrong(problem)


def _blobs(folder: Path) -> set[str]:
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def _expect_files(world: World, chip: str, digests: set[str]) -> None:
    for name, data in world.files[chip].items():
        _expect(hashlib.sha256(data).hexdigest() in digests, f"{name} of {chip} is not there")


# ---- crane -----------------------------------------------------------------------------------------------


def crane_pulls(world: World, tool: Tool, registry: str) -> None:
    where = world.reference(registry)
    _expect(tool.run("digest", "--insecure", where).strip() == world.digest, "it names another digest")
    for chip, platform in PLATFORMS.items():
        out = world.room()
        tool.run("pull", "--insecure", "--format=oci", f"--platform={platform}", where, str(out))
        _expect_files(world, chip, _blobs(out))


def crane_copies(world: World, tool: Tool, registry: str) -> None:
    target = f"{world.fresh(registry)}:2.1.0"
    tool.run("copy", "--insecure", world.reference(registry), target)
    world.holds(target)


def crane_pushes(world: World, tool: Tool, registry: str) -> None:
    """Its `pull` of ours as a layout, and `push` of that; it makes an index of its own around ours."""
    out, target = world.room(), world.fresh(registry)
    tool.run("pull", "--insecure", "--format=oci", world.reference(registry), str(out))
    tool.run("push", "--insecure", "--index", str(out), f"{target}:2.1.0")
    world.holds(f"{target}@{world.digest}")


# ---- oras ------------------------------------------------------------------------------------------------


def oras_pulls(world: World, tool: Tool, registry: str) -> None:
    for chip, platform in PLATFORMS.items():
        out = world.room()
        tool.run("pull", "--plain-http", f"--platform={platform}", "-o", str(out), world.reference(registry))
        for name, data in world.files[chip].items():
            _expect((out / chip / name).read_bytes() == data, f"{chip}/{name} is not what was pushed")
    listed = json.loads(
        tool.run(
            "discover",
            "--plain-http",
            "--format=json",
            f"{world.reference(registry).rpartition(':')[0]}@{world.digest}",
        )
    )
    _expect("sigstore.bundle" in json.dumps(listed), "it does not see our signature as a referrer")


def oras_copies(world: World, tool: Tool, registry: str) -> None:
    target = f"{world.fresh(registry)}:2.1.0"
    tool.run("cp", "-r", "--from-plain-http", "--to-plain-http", world.reference(registry), target)
    world.holds(target, keys=[world.trusted])


def oras_pushes(world: World, tool: Tool, registry: str) -> None:
    """What it copies out of a layout of ours; and a layout that it wrote."""
    target, out = f"{world.fresh(registry)}:2.1.0", world.room() / "layout"
    tool.run("cp", "-r", "--to-plain-http", "--from-oci-layout", f"{world.layout}:2.1.0", target)
    world.holds(target, keys=[world.trusted])
    tool.run("cp", "-r", "--from-plain-http", "--to-oci-layout", world.reference(registry), f"{out}:2.1.0")
    world.holds(f"oci:{out}:2.1.0", keys=[world.trusted])


# ---- skopeo ----------------------------------------------------------------------------------------------

_SKOPEO = ("--insecure-policy",)


def skopeo_pulls(world: World, tool: Tool, registry: str) -> None:
    for chip, platform in PLATFORMS.items():
        out = world.room()
        system, machine, variant = platform.split("/")
        tool.run(
            *_SKOPEO, f"--override-os={system}", f"--override-arch={machine}", f"--override-variant={variant}",
            "copy", "--src-tls-verify=false", f"docker://{world.reference(registry)}", f"dir:{out}",
        )  # fmt: skip
        _expect_files(world, chip, _blobs(out))


def skopeo_copies(world: World, tool: Tool, registry: str) -> None:
    target = f"{world.fresh(registry)}:2.1.0"
    tool.run(
        *_SKOPEO, "copy", "--all", "--src-tls-verify=false", "--dest-tls-verify=false",
        f"docker://{world.reference(registry)}", f"docker://{target}",
    )  # fmt: skip
    world.holds(target)


def skopeo_pushes(world: World, tool: Tool, registry: str) -> None:
    """What it copies out of a layout that it wrote."""
    out, target = world.room() / "layout", f"{world.fresh(registry)}:2.1.0"
    tool.run(
        *_SKOPEO, "copy", "--all", "--src-tls-verify=false", f"docker://{world.reference(registry)}", f"oci:{out}:2.1.0"
    )
    world.holds(f"oci:{out}:2.1.0")
    tool.run(*_SKOPEO, "copy", "--all", "--dest-tls-verify=false", f"oci:{out}:2.1.0", f"docker://{target}")
    world.holds(target)


# ---- cosign ----------------------------------------------------------------------------------------------


def _cosign(tool: Tool, *arguments: str, cwd: Path | None = None) -> str:
    return tool.run(*arguments, env=PASSWORD, cwd=cwd)


def cosign_2_verifies(world: World, tool: Tool, registry: str) -> None:
    where = f"{world.reference(registry).rpartition(':')[0]}@{world.digest}"
    arguments = ("--insecure-ignore-tlog", "--allow-http-registry", "--allow-insecure-registry")
    said = json.loads(_cosign(tool, "verify", "--key", str(world.key), *arguments, where))
    _expect(said[0]["critical"]["image"]["docker-manifest-digest"] == world.digest, "it verified something else")
    _refuses_unsigned(world, tool, registry, arguments)


def cosign_3_verifies(world: World, tool: Tool, registry: str) -> None:
    where = f"{world.reference(registry).rpartition(':')[0]}@{world.digest}"
    arguments = ("--insecure-ignore-tlog", "--allow-http-registry", "--allow-insecure-registry")
    for form in ("true", "false"):
        _cosign(tool, "verify", "--key", str(world.key), f"--new-bundle-format={form}", *arguments, where)
    _refuses_unsigned(world, tool, registry, arguments)


def _refuses_unsigned(world: World, tool: Tool, registry: str, arguments: tuple[str, ...]) -> None:
    try:
        _cosign(tool, "verify", "--key", str(world.key), *arguments, world.unsigned(registry))
    except ToolFailed:
        return
    raise Wrong("it also accepts what nobody signed: the check says nothing")


def cosign_2_signs(world: World, tool: Tool, registry: str) -> None:
    _signed_by(world, tool, registry, "--tlog-upload=false")


def cosign_3_signs(world: World, tool: Tool, registry: str) -> None:
    _signed_by(world, tool, registry, "--use-signing-config=false", "--tlog-upload=false")


def cosign_3_signs_as_2(world: World, tool: Tool, registry: str) -> None:
    _signed_by(world, tool, registry, "--use-signing-config=false", "--tlog-upload=false", "--new-bundle-format=false")


def _signed_by(world: World, tool: Tool, registry: str, *how: str) -> None:
    folder, where = world.room(), world.unsigned(registry)
    key = cosign_key(tool, folder)
    reach = ("--allow-http-registry", "--allow-insecure-registry")
    _cosign(tool, "sign", "--key", "cosign.key", *how, *reach, where, cwd=folder)
    world.holds(where, keys=[key])
    copy = f"oci:{world.room() / 'layout'}:2.1.0"
    api.copy(where, copy, keys=[key], options=OPTIONS)
    world.holds(copy, keys=[key])


# ---- attestations ----------------------------------------------------------------------------------------

_SPDX = {
    "spdxVersion": "SPDX-2.3",
    "dataLicense": "CC0-1.0",
    "SPDXID": "SPDXRef-DOCUMENT",
    "name": "porch-sensor",
    "documentNamespace": "https://example.invalid/porch-sensor",
    "creationInfo": {"created": "2026-01-01T00:00:00Z", "creators": ["Tool: interop"]},
    "packages": [{"name": "porch-sensor", "SPDXID": "SPDXRef-app", "downloadLocation": "NOASSERTION"}],
}
_BUILDER = "https://example.invalid/builder"
_REACH = ("--allow-http-registry", "--allow-insecure-registry")


def _provenance(world: World, where: str) -> Document:
    store = world.store(where)
    configs = [api.open_chip(store, world.digest, chip).config for chip in PLATFORMS]
    return make_provenance(configs, _BUILDER, {})


def cosign_reads_attestations(world: World, tool: Tool, registry: str) -> None:
    """Our signed SBOM and provenance, with our key; and not with another one."""
    where = world.unsigned(registry)
    store = world.store(where, push=True)
    sbom = read_sbom(json.dumps(_SPDX).encode(), Path("sbom.spdx.json"))
    raw = store.get_manifest(world.digest).raw
    top = Descriptor(media_type=INDEX_TYPE, digest=world.digest, size=len(raw))
    subjects = [*api.open_index(store, world.digest).manifests, top]
    for document in (sbom, _provenance(world, where)):
        attach(store, subjects, document, world.signer, store.name)
    other = world.room()
    root = other / "root.json"  # of no authority: else cosign 2 asks the public one, even where a key is named
    root.write_text('{"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1"}')
    arguments = ("--new-bundle-format", "--insecure-ignore-tlog", f"--trusted-root={root}", *_REACH)
    cosign_key(tool, other)
    for kind in ("spdxjson", "slsaprovenance1"):
        _cosign(tool, "verify-attestation", "--key", str(world.key), "--type", kind, *arguments, where)
        try:
            _cosign(tool, "verify-attestation", "--key", str(other / "cosign.pub"), "--type", kind, *arguments, where)
        except ToolFailed:
            continue
        raise Wrong("it also accepts another key: the check says nothing")


def cosign_2_attests(world: World, tool: Tool, registry: str) -> None:
    _attested_by(world, tool, registry, ["--tlog-upload=false"], ["--tlog-upload=false", "--new-bundle-format"])


def cosign_3_attests(world: World, tool: Tool, registry: str) -> None:
    how = ["--use-signing-config=false", "--tlog-upload=false"]
    _attested_by(world, tool, registry, how, how)


def _attested_by(world: World, tool: Tool, registry: str, sign: list[str], attest: list[str]) -> None:
    """Signed, with an SBOM and provenance, by cosign: our strictest policy is content; without one of them it is not."""
    folder, where = world.room(), world.unsigned(registry)
    key = cosign_key(tool, folder)
    store = world.store(where)
    chips = [entry.digest for entry in api.open_index(store, world.digest).manifests]
    policy = api.VerificationPolicy([key], sbom=True, provenance=True, builders=frozenset({_BUILDER}))
    documents = {"spdxjson": _SPDX, "slsaprovenance1": _provenance(world, where).predicate}
    for digest in (*chips, world.digest):
        subject = f"{store.name}@{digest}"
        _cosign(tool, "sign", "--key", "cosign.key", *sign, *_REACH, subject, cwd=folder)
        for kind, predicate in documents.items():
            if digest == chips[-1] and kind == "slsaprovenance1":
                refused = _refused(lambda: api.verify_policy(world.store(where), world.digest, policy))
                _expect(refused, "the policy was content before everything was attested")
            (folder / kind).write_text(json.dumps(predicate))
            _cosign(
                tool, "attest", "--key", "cosign.key", "--type", kind, "--predicate", kind, *attest, *_REACH, subject,
                cwd=folder,
            )  # fmt: skip
    api.verify_policy(world.store(where), world.digest, policy)


def _refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except PipelineError:
        return True
    return False


# ---- registries ------------------------------------------------------------------------------------------


def we_push_and_pull(world: World, _tool: Tool, registry: str) -> None:
    world.holds(world.reference(registry), keys=[world.trusted])


def we_copy(world: World, _tool: Tool, registry: str) -> None:
    """To a layout, back into another repository, and on to every other registry."""
    layout = f"oci:{world.room() / 'layout'}:2.1.0"
    targets = [layout, f"{world.fresh(registry)}:2.1.0"]
    targets += [f"{world.fresh(name)}:2.1.0" for name in world.running if name != registry]
    source = world.reference(registry)
    for target in targets:
        api.copy(source, target, keys=[world.trusted], options=OPTIONS)
        world.holds(target, keys=[world.trusted])
        source = target


def we_pull_a_part(world: World, _tool: Tool, registry: str) -> None:
    """The adapter goes on in the middle of a blob, by Range."""
    store = world.store(world.reference(registry))
    layer = api.open_chip(store, world.digest, "esp32c3").app
    data = world.files["esp32c3"][Path(layer.title).name]
    receiver, sink = half_received(layer.descriptor, data)
    store.receive_blob(layer.descriptor, receiver)
    _expect(sink.getvalue() == data, "the rest is not what was missing")


def half_received(descriptor: Descriptor, data: bytes) -> tuple[BlobReceiver, BytesIO]:
    """A reception that ended in the middle."""
    sink = BytesIO(data[: len(data) // 2])
    receiver = BlobReceiver(descriptor, sink)
    receiver.resume()
    return receiver, sink
