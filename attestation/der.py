# SPDX-License-Identifier: Apache-2.0
"""Strict DER (X.690 section 10) for what DICE certificates hold: read one element at a time, write one at a time. Pure.

Reading accepts an element only if all of these rules hold:

1. Its tag is one byte, and the expected one where the caller names it.
2. Its length is definite, in its shortest form, and not longer than what is left.
3. Nothing follows the last element of a sequence, or the outermost one.

Anything else is ``dice.x509.der``. What the elements mean is the caller's business (``dice_x509``).
"""

from typing import Final

from attestation.errors import Code, Reject

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
OBJECT_ID: Final = 0x06
ENUMERATED: Final = 0x0A
UTF8_STRING: Final = 0x0C
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
SEQUENCE: Final = 0x30


def context(number: int) -> int:
    """Tag of ``[number]``, constructed: how DICE's explicitly tagged fields begin."""
    return 0xA0 | number


class Reader:
    """Reads the elements of one sequence, in order.

    Args:
        data: the content.
        what: what is read, for messages.
    """

    __slots__ = ("data", "position", "what")

    def __init__(self, data: bytes, what: str) -> None:
        self.data = data
        self.what = what
        self.position = 0

    @property
    def more(self) -> bool:
        """Whether elements are left."""
        return self.position < len(self.data)

    @property
    def tag(self) -> int:
        """Tag of the next element; -1 at the end."""
        return self.data[self.position] if self.more else -1

    def element(self, tag: int) -> bytes:
        """The content of the next element, which must have this tag.

        Raises:
            Reject: rule 1 or 2.
        """
        start = self._content(tag)
        return self.data[start : self.position]

    def whole(self, tag: int) -> bytes:
        """The next element with its head."""
        before = self.position
        self._content(tag)
        return self.data[before : self.position]

    def end(self) -> None:
        """Rule 3.

        Raises:
            Reject: elements are left.
        """
        if self.more:
            raise self._reject(f"{len(self.data) - self.position} bytes follow the last element")

    def _content(self, tag: int) -> int:
        data, start = self.data, self.position
        if self.tag != tag:
            found = f"{self.tag:#04x}" if self.more else "the end"
            raise self._reject(f"{found} at byte {start}, expected tag {tag:#04x}")
        if start + 2 > len(data):
            raise self._reject("the last element is cut off")
        length, content = data[start + 1], start + 2
        if length >= 0x80:
            width = length - 0x80
            content += width
            if not 1 <= width <= 2 or content > len(data):
                raise self._reject(f"bad length at byte {start + 1}")
            length = int.from_bytes(data[start + 2 : content], "big")
            if length < (0x80 if width == 1 else 0x100):
                raise self._reject(f"the length at byte {start + 1} has a shorter form")
        if content + length > len(data):
            raise self._reject(f"{length} bytes announced at byte {start}, {len(data) - content} are left")
        self.position = content + length
        return content

    def _reject(self, message: str) -> Reject:
        return Reject(Code.DICE_X509_DER, f"{self.what}: {message}")


def write(tag: int, *contents: bytes) -> bytes:
    """One element whose content is the concatenation of ``contents``, at most 65,535 bytes."""
    content = b"".join(contents)
    size = len(content)
    if size < 0x80:
        head = bytes((tag, size))
    elif size < 0x100:
        head = bytes((tag, 0x81, size))
    else:
        head = bytes((tag, 0x82)) + size.to_bytes(2, "big")
    return head + content


def unsigned(value: int) -> bytes:
    """An INTEGER that is not negative."""
    return write(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))
