"""Hooks of mkdocs: pages from documents outside of docs/, and links between all of them."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCUMENTS = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "deploy/helm/whalebridge/README.md": "chart.md",
}
"""Pages by the path of their document in the repository; docs/NAME.md is the page NAME.md."""

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the documents outside of docs/."""
    from mkdocs.structure.files import File  # noqa: PLC0415 (its environment is that of `make site` only)

    for document, page in DOCUMENTS.items():
        files.append(File.generated(config, page, content=(ROOT / document).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Rewrite the links of a page."""
    documents = {name: document for document, name in DOCUMENTS.items()}
    source = documents.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return rewrite_links(markdown, source, config.repo_url or "")


def rewrite_links(markdown: str, source: str, repository: str) -> str:
    """Return a document with links to pages, and to the repository for all other files, or their text alone."""

    def rewrite(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
        if link["image"]:  # all pages are in the directory of the site that docs/ becomes
            return f"![{link['text']}]({posixpath.relpath(target, 'docs')})"
        page = DOCUMENTS.get(target) or (target.removeprefix("docs/") if re.fullmatch(r"docs/\w+\.md", target) else "")
        if page:
            return f"[{link['text']}]({page}{link['anchor'] or ''})"
        revision = os.environ.get("SITE_REVISION", "HEAD")
        return f"[{link['text']}]({repository}/blob/{revision}/{target})" if repository else link["text"]

    return _LINK.sub(rewrite, markdown)
