"""A hook of mkdocs: docstrings name things as ``:func:`name```; on the pages the name alone stands, as code."""

from __future__ import annotations

import re

_ROLE = re.compile(r":(?:mod|func|class|meth|data|attr):(?=<code>)")


def without_roles(html: str) -> str:
    """HTML without the roles in front of code.

    Args:
        html: of a page.

    Example:
        ``without_roles("see :func:<code>f</code>")`` is ``"see <code>f</code>"``.
    """
    return _ROLE.sub("", html)


def on_page_content(html: str, **_: object) -> str:
    """Called by mkdocs with the HTML of each page."""
    return without_roles(html)
