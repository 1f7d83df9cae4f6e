# SPDX-License-Identifier: Apache-2.0
"""What must be proven of an artifact before it may be used: small rules that compose. Pure judgement over gathered bytes.

What counts at all (`prove`):
    1. Somebody must be trusted: no key, or a threshold below 1 or above the number of distinct keys, is refused.
    2. A claim counts if a trusted key signed its bytes; before that nothing in it is read. A key that is listed twice,
       under whatever names, is one key.
    3. A claim must be about this very digest. A signature names it alone, an attestation may name others beside it.

What is demanded (each a `Rule`, in this order; the first that fails is the reason):
    4. `SignedBy`: that many distinct keys signed. Only signatures count that carry every required annotation and, if a
       prefix is demanded, name a repository under it (the newer format names none).
    5. `HasSbom`: a trusted key signed an SBOM of the artifact, or one of each of its chips.
    6. `HasProvenance`: likewise SLSA provenance, and if builders are named, by one of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from firmware_pipeline.errors import PipelineError, Reason
from firmware_pipeline.signing.formats import MAX_ATTESTATION_BYTES, MAX_SIGNED_BYTES, Candidate, claim_of
from firmware_pipeline.signing.keys import TrustedKey, distinct, signature_holds
from firmware_pipeline.signing.statements import SBOM_PREDICATES, SIGN_PREDICATE, SLSA_PREDICATE, Claim

_DISTRUST: Final = "Check that the right key signed and that the artifact was not replaced; do not flash it."


@dataclass(frozen=True, slots=True)
class Gathered:
    """Everything that was found and claims to be signed. Nothing in it is believed yet.

    Attributes:
        digest: what is judged.
        candidates: found under that digest.
        chips: found under the digest of each chip's manifest, by digest; empty where nobody asks for them.
    """

    digest: str
    candidates: Sequence[Candidate]
    chips: Mapping[str, Sequence[Candidate]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Proven:
    """What the trusted keys have really said.

    Attributes:
        digest: what is judged.
        found: how many candidates there were under it.
        trusted: name by key id.
        claims: (key id, claim) about the digest.
        chips: the same for each chip's manifest.
    """

    digest: str
    found: int
    trusted: Mapping[str, str]
    claims: tuple[tuple[str, Claim], ...]
    chips: Mapping[str, tuple[tuple[str, Claim], ...]]

    def signatures(self) -> list[tuple[str, Claim]]:
        """(key id, claim) of those that are signatures."""
        return [(key, claim) for key, claim in self.claims if claim.predicate_type == SIGN_PREDICATE]

    def documents(self, kinds: frozenset[str]) -> list[list[Claim]]:
        """Attested documents of these predicate types: those about the artifact if there are any, else one list for each
        chip; an empty list in it means that a chip has none."""
        own = [claim for _, claim in self.claims if claim.predicate_type in kinds]
        if own or not self.chips:
            return [own]
        return [[c for _, c in claims if c.predicate_type in kinds] for claims in self.chips.values()]


@dataclass(frozen=True, slots=True)
class Judgement:
    """An accepted artifact. `signers` are the names of the trusted keys that signed, sorted."""

    digest: str
    signers: tuple[str, ...]


class Rule(Protocol):
    """One demand."""

    def check(self, proven: Proven) -> None:
        """Return if it is met.

        Raises:
            PipelineError: it is not, with the rule's own reason.
        """
        ...


@dataclass(frozen=True, slots=True)
class SignedBy:
    """Rule 4."""

    threshold: int = 1
    annotations: Mapping[str, str] = field(default_factory=dict)
    identity_prefix: str = ""

    def holders(self, proven: Proven) -> frozenset[str]:
        """Ids of the keys whose signature counts."""
        return frozenset(key for key, claim in proven.signatures() if self._annotated(claim) and self._at_home(claim))

    def check(self, proven: Proven) -> None:
        """See Rule."""
        signed, held = {key for key, _ in proven.signatures()}, self.holders(proven)
        if len(held) >= self.threshold:
            return
        if len(signed) >= self.threshold:
            names = ", ".join(sorted(proven.trusted[key] for key in signed))
            if len({key for key, claim in proven.signatures() if self._annotated(claim)}) < self.threshold:
                wanted = ", ".join(f"{key}={value}" for key, value in self.annotations.items())
                raise PipelineError(
                    Reason.AnnotationMissing,
                    f"{proven.digest} is signed by {names}, but too few of these signatures say {wanted}.",
                    "Sign it with `firmware-pipeline sign REF --key KEY --annotation KEY=VALUE`, once it deserves it.",
                )
            raise PipelineError(
                Reason.IdentityMismatch,
                f"{proven.digest} is signed by {names}, but not for a repository under {self.identity_prefix}.",
                "Check where it was signed first; a copy keeps the name of its origin.",
            )
        if not proven.found:
            raise PipelineError(
                Reason.UnsignedArtifact,
                f"{proven.digest} has no signature.",
                "Push it with `firmware-pipeline push --sign KEY`, or sign it with cosign.",
            )
        if not signed:
            raise PipelineError(
                Reason.SignatureInvalid,
                f"{proven.digest} has {proven.found} signatures, but none by a trusted key "
                f"({', '.join(sorted(proven.trusted.values()))}).",
                _DISTRUST,
            )
        raise PipelineError(
            Reason.SignatureThreshold,
            f"{proven.digest} is signed by {', '.join(sorted(proven.trusted[key] for key in signed))}; "
            f"{self.threshold} distinct trusted keys are needed.",
            "Let the other signers sign it (`firmware-pipeline sign REF --key KEY`), then try again.",
        )

    def _annotated(self, claim: Claim) -> bool:
        return all(claim.annotations.get(key) == value for key, value in self.annotations.items())

    def _at_home(self, claim: Claim) -> bool:
        prefix, name = self.identity_prefix.rstrip("/"), claim.identity
        return not prefix or (name is not None and (name == prefix or name.startswith(f"{prefix}/")))


@dataclass(frozen=True, slots=True)
class HasSbom:
    """Rule 5."""

    def check(self, proven: Proven) -> None:
        """See Rule."""
        if not all(proven.documents(SBOM_PREDICATES)):
            raise PipelineError(
                Reason.SbomMissing,
                f"{proven.digest} and its chips have no complete set of SBOMs that a trusted key signed.",
                "Attach one for each chip: `firmware-pipeline attach REF --chip CHIP --sbom FILE --sign KEY`.",
            )


@dataclass(frozen=True, slots=True)
class HasProvenance:
    """Rule 6."""

    builders: frozenset[str] = frozenset()

    def check(self, proven: Proven) -> None:
        """See Rule."""
        found = proven.documents(frozenset({SLSA_PREDICATE}))
        if not all(found):
            raise PipelineError(
                Reason.ProvenanceMissing,
                f"{proven.digest} has no provenance that a trusted key signed.",
                "Push with `--provenance --builder URI --sign KEY`, or attach it with `firmware-pipeline attach`.",
            )
        if self.builders and not all(any(_builder(claim) in self.builders for claim in claims) for claims in found):
            named = sorted({_builder(claim) or "none" for claims in found for claim in claims})
            raise PipelineError(
                Reason.BuilderNotTrusted,
                f"{proven.digest} was built by {', '.join(named)[:300]}; trusted are {', '.join(sorted(self.builders))}.",
                "Build it where the policy trusts, or correct the policy's list of builders.",
            )


@dataclass(frozen=True, slots=True)
class VerificationPolicy:
    """Who must have said what.

    Attributes:
        keys: whose word counts; several keys may be listed while one replaces another.
        threshold: how many distinct keys must have signed.
        annotations: what each counted signature must state.
        identity_prefix: repository, or its first path parts, that each counted signature must name; empty for any.
        sbom, provenance: demand such a document.
        builders: accepted builder ids of provenance; empty accepts any.
    """

    keys: Sequence[TrustedKey]
    threshold: int = 1
    annotations: Mapping[str, str] = field(default_factory=dict)
    identity_prefix: str = ""
    sbom: bool = False
    provenance: bool = False
    builders: frozenset[str] = frozenset()

    @property
    def signed(self) -> SignedBy:
        """Rule 4 with this policy's values."""
        return SignedBy(self.threshold, self.annotations, self.identity_prefix)

    @property
    def documents(self) -> bool:
        """Whether documents beside the signatures matter."""
        return self.sbom or self.provenance or bool(self.builders)

    @property
    def max_bytes(self) -> int:
        """How large a bundle may be to be looked at."""
        return MAX_ATTESTATION_BYTES if self.documents else MAX_SIGNED_BYTES

    def rules(self) -> Iterator[Rule]:
        """All demands, in the order of the module's rules."""
        yield self.signed
        if self.sbom:
            yield HasSbom()
        if self.provenance or self.builders:
            yield HasProvenance(self.builders)


def prove(policy: VerificationPolicy, gathered: Gathered) -> Proven:
    """Rules 1 to 3.

    Raises:
        PipelineError: SignersNotConfigured.
    """
    trusted = distinct(policy.keys)
    if not trusted or not 1 <= policy.threshold <= len(trusted):
        raise PipelineError(
            Reason.SignersNotConfigured,
            f"{len(trusted)} distinct keys are trusted and {policy.threshold} must have signed: "
            "this can never be judged.",
            "Name the public keys whose signature counts, and a threshold from 1 to their number.",
        )
    return Proven(
        digest=gathered.digest,
        found=len(gathered.candidates),
        trusted={key.id: key.name for key in trusted.values()},
        claims=_claims(gathered.digest, gathered.candidates, trusted),
        chips={digest: _claims(digest, found, trusted) for digest, found in gathered.chips.items()},
    )


def judge(policy: VerificationPolicy, gathered: Gathered) -> Judgement:
    """Decide by all rules.

    Raises:
        PipelineError: SignersNotConfigured, UnsignedArtifact, SignatureInvalid, SignatureThreshold, AnnotationMissing,
            IdentityMismatch, SbomMissing, ProvenanceMissing, BuilderNotTrusted.
    """
    proven = prove(policy, gathered)
    for rule in policy.rules():
        rule.check(proven)
    return Judgement(proven.digest, tuple(sorted(proven.trusted[key] for key in policy.signed.holders(proven))))


def _claims(
    digest: str, candidates: Sequence[Candidate], trusted: Mapping[str, TrustedKey]
) -> tuple[tuple[str, Claim], ...]:
    """Rules 2 and 3."""
    return tuple(
        (key.id, claim)
        for candidate in candidates
        for key in trusted.values()
        if signature_holds(key.key, candidate.signature, candidate.signed)
        and (claim := claim_of(candidate)) is not None
        and digest in claim.digests
    )


def _builder(claim: Claim) -> str | None:
    details = claim.predicate.get("runDetails")
    builder = details.get("builder") if isinstance(details, dict) else None
    name = builder.get("id") if isinstance(builder, dict) else None
    return name if isinstance(name, str) else None
