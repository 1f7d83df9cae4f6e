# SPDX-License-Identifier: Apache-2.0
"""Exit codes of `firmware-pipeline`: which refusal ends with which number.

0  done
1  a local file could not be written, or an internal error; `diff`: the artifacts differ
2  wrong usage: options, references, key files
3  the build is not valid
4  the registry refused the login or the right
5  the registry could not be reached, did not answer rightly, or has no such artifact
6  an artifact failed a check: digest, signature, release, content
130  interrupted by Ctrl-C (143: by SIGTERM)
"""

from typing import Final

from firmware_pipeline.errors import Reason

CHECK_FAILED: Final = 6
INTERRUPTED: Final = 130
_USAGE: Final = frozenset(
    {
        Reason.FeatureMalformed,
        Reason.ReferenceMalformed,
        Reason.KeyMalformed,
        Reason.SignersNotConfigured,
        Reason.CredentialsMalformed,
        Reason.SignerFailed,
    }
)
_AUTH: Final = frozenset({Reason.RegistryUnauthorized, Reason.RegistryForbidden, Reason.ForeignRealm})
_NETWORK: Final = frozenset(
    {
        Reason.ReferenceNotFound,
        Reason.RegistryUnreachable,
        Reason.RegistryTimeout,
        Reason.RegistryBusy,
        Reason.RegistryProtocol,
        Reason.ForeignUpload,
        Reason.RedirectRefused,
    }
)
_CHECK: Final = frozenset(
    {
        Reason.AnnotationMissing,
        Reason.ArtifactMalformed,
        Reason.BuilderNotTrusted,
        Reason.ConfigMalformed,
        Reason.DigestMismatch,
        Reason.SecurityVersionTooLow,
        Reason.DowngradeNotAllowed,
        Reason.ContentDisagrees,
        Reason.IdentityMismatch,
        Reason.MediaTypeUnsupported,
        Reason.PlatformAmbiguous,
        Reason.PlatformMissing,
        Reason.ProvenanceMissing,
        Reason.ReleaseInvalid,
        Reason.ReleaseMissing,
        Reason.SbomMissing,
        Reason.SignatureInvalid,
        Reason.SignatureThreshold,
        Reason.SizeMismatch,
        Reason.TooLarge,
        Reason.UnsignedArtifact,
        Reason.WrongChip,
    }
)


def exit_code(reason: Reason) -> int:
    """The documented exit code for a reason."""
    for code, reasons in ((2, _USAGE), (4, _AUTH), (5, _NETWORK), (CHECK_FAILED, _CHECK)):
        if reason in reasons:
            return code
    return 1 if reason is Reason.StorageFailed else 3
