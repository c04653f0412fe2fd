"""Conversion of office files to PDF by LibreOffice, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from rsgrpo.documents.records import DocumentError
from rsgrpo.errors import shown

PROGRAMS = ("soffice", "libreoffice")
CONVERSION_SECONDS = 600.0
"""Longest time that LibreOffice may take for one file; a large presentation takes a minute or two."""


def convert_to_pdf(path: Path, folder: Path) -> Path:
    """Convert an office file to PDF with LibreOffice.

    Args:
        path: the path of the office file.
        folder: the folder for the PDF and for LibreOffice's own profile; it is made if it does not exist.

    Returns:
        The path of the PDF.

    Raises:
        DocumentError: LibreOffice is not installed, takes longer than ten minutes, or makes no PDF.
        OSError: the folder cannot be written.
    """
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        raise DocumentError(
            f"it is an office file ({path.suffix}), and LibreOffice is not installed here to convert it; install it "
            "(apt-get install libreoffice), or save the file as PDF"
        )
    folder.mkdir(parents=True, exist_ok=True)
    # A profile of its own: with the user's, a second LibreOffice hands its work to the first and makes no file.
    command = [
        program,
        f"-env:UserInstallation={(folder / 'profile').absolute().as_uri()}",
        "--headless",
        "--norestore",
        "--convert-to",
        "pdf",
        "--outdir",
        str(folder),
        str(path),
    ]
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=CONVERSION_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DocumentError(
            f"LibreOffice did not convert it within {CONVERSION_SECONDS:g} s; save it as PDF yourself"
        ) from error
    made = next(iter(sorted(folder.glob("*.pdf"))), None)
    if made is None:
        said = shown((result.stderr or result.stdout).decode(errors="replace"), 120) or f"status {result.returncode}"
        raise DocumentError(f"LibreOffice cannot convert it ({said}); save it as PDF yourself")
    return made
