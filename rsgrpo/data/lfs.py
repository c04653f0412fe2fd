"""Git LFS pointers: small text files that stand where the real file was not fetched."""

from __future__ import annotations

_POINTER = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")

LFS_ADVICE = "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download the file again"
"""What a message says about a pointer; the file's name stands in front of it."""


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file is a Git LFS pointer.

    Args:
        head: the first bytes of the file, 64 or more of them.

    Example:
        >>> is_lfs_pointer(b"version https://git-lfs.github.com/spec/v1\\noid sha256:…")
        True
    """
    return head.startswith(_POINTER)
