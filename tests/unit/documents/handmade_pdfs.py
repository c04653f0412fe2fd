"""PDF files made byte by byte, with any number of pages, sizes, rotations, an outline, a form or encryption."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")


@dataclass(frozen=True, kw_only=True)
class PdfPage:
    text: str = ""
    width: float = 200
    height: float = 100
    rotate: int = 0
    drawing: str = ""  # PDF operators
    more: str = field(default="")  # entries of the page's dictionary


def text_pages(*texts: str) -> list[PdfPage]:
    return [PdfPage(text=text) for text in texts]


def make_pdf(
    pages: Sequence[PdfPage],
    *,
    outline: Iterable[tuple[int, str]] = (),
    password: str | None = None,
    field: str | None = None,
) -> bytes:
    """Make the bytes of a PDF file.

    Args:
        pages: the pages, in their order.
        outline: the page number, from 1 on, and the title of each outline entry.
        password: the password that opens the file; None: the file is not encrypted.
        field: the text that was filled into the form of the first page; None: there is no form. A file cannot have
            both a form and an outline.
    """
    entries = list(outline)
    first_page = 4
    first_entry = first_page + 2 * len(pages)
    file_id = hashlib.md5(b"".join(page.text.encode() for page in pages)).digest()
    key = _key(password, file_id) if password is not None else b""

    def stream(number: int, content: bytes) -> bytes:
        if key:
            content = _rc4(hashlib.md5(key + number.to_bytes(3, "little") + b"\0\0").digest()[: len(key) + 5], content)
        return b"<< /Length %d >>\nstream\n%b\nendstream" % (len(content), content)

    form = "" if field is None else f" /AcroForm << /Fields [{first_entry} 0 R] /DR << /Font << /F 3 0 R >> >> >>"
    kids = " ".join(f"{first_page + 2 * index} 0 R" for index in range(len(pages)))
    root = f"<< /Type /Catalog /Pages 2 0 R{f' /Outlines {first_entry} 0 R' if entries else ''}{form} >>"
    objects = [
        root.encode(),
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for page in pages:
        number = len(objects) + 1
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {page.width} {page.height}] /Rotate {page.rotate} "
            f"/Resources << /Font << /F 3 0 R >> >> /Contents {number + 1} 0 R {page.more} >>".encode()
        )
        written = f"BT /F 12 Tf 10 40 Td ({page.text}) Tj ET " if page.text else ""
        objects.append(stream(number + 1, (written + page.drawing).encode()))
    if entries:
        last = first_entry + len(entries)
        objects.append(
            f"<< /Type /Outlines /First {first_entry + 1} 0 R /Last {last} 0 R /Count {len(entries)} >>".encode()
        )
        for index, (page_number, title) in enumerate(entries, first_entry + 1):
            following = f"/Next {index + 1} 0 R" if index < last else ""
            target = first_page + 2 * (page_number - 1)
            objects.append(
                f"<< /Title ({title}) /Parent {first_entry} 0 R /Dest [{target} 0 R /Fit] {following} >>".encode()
            )
    if field is not None:
        objects.append(
            f"<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V ({field}) /DA (/F 12 Tf 0 g) /F 4 /P 4 0 R "
            "/Rect [0 0 100 20] >>".encode()
        )
    trailer = b"/Root 1 0 R /ID [<%b> <%b>]" % ((file_id.hex().encode(),) * 2)
    if password is not None:
        check = _rc4(key, _PADDING)
        owner = bytes(32)
        objects.append(
            b"<< /Filter /Standard /V 1 /R 2 /P -4 /O <%b> /U <%b> >>" % (owner.hex().encode(), check.hex().encode())
        )
        trailer += b" /Encrypt %d 0 R" % len(objects)
    return _file(objects, trailer)


def _file(objects: list[bytes], trailer: bytes) -> bytes:
    parts = [b"%PDF-1.5\n"]
    size, offsets = len(parts[0]), []
    for number, content in enumerate(objects, 1):
        offsets.append(size)
        parts.append(b"%d 0 obj\n%b\nendobj\n" % (number, content))
        size += len(parts[-1])
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    parts.append(b"xref\n0 %d\n0000000000 65535 f \n%b" % (len(objects) + 1, table))
    parts.append(b"trailer\n<< /Size %d %b >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, size))
    return b"".join(parts)


def _key(password: str, file_id: bytes) -> bytes:
    padded = (password.encode() + _PADDING)[:32]
    return hashlib.md5(padded + bytes(32) + (-4 & 0xFFFFFFFF).to_bytes(4, "little") + file_id).digest()[:5]


def _rc4(key: bytes, data: bytes) -> bytes:
    state = list(range(256))
    j = 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out = bytearray()
    i = j = 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)
