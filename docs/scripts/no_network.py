"""A hook of mkdocs: refuse pages that would fetch anything from the network."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.exceptions import PluginError

_FETCHED = re.compile(
    r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"']?(?P<address>(?:https?:)?//[^\"'\s>]+)",
    re.IGNORECASE,
)


def fetched_addresses(html: str) -> list[str]:
    """Addresses that a browser would fetch to show a page; links that a reader may follow do not count.

    For a block of mermaid the theme fetches the program that draws it.
    """
    found = [
        match["address"]
        for match in _FETCHED.finditer(html)
        if not re.search(r"rel=[\"']?(?:canonical|prev|next)\b", match[0])
    ]
    return [*found, *(["mermaid"] if re.search(r"class=[\"']?mermaid\b", html) else [])]


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Called by mkdocs with every page that it has built.

    Args:
        output: the page's HTML.
        page: mkdocs' record of it.
        config: the settings of mkdocs.

    Raises:
        PluginError: the page would fetch something; the message names the address.
    """
    found = fetched_addresses(output)
    if found:
        raise PluginError(f"{page.file.src_path} would fetch {found[0]} from the network")
    return output
