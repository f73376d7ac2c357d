"""Checks that links between Markdown files lead to files and headings that exist. Nothing is asked of the network.

Usage: check_links.py ROOT
"""

import pathlib
import re
import sys

SKIPPED = {"target", ".git", "node_modules"}
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(path):
    """Ids of the headings as renderers make them: lower case, spaces to hyphens, punctuation dropped."""
    found, fenced = set(), False
    for line in path.read_text(encoding="utf-8").splitlines():
        fenced ^= line.startswith("```")
        if not fenced and line.startswith("#"):
            text = line.lstrip("#").strip().lower().replace("`", "")
            found.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return found


def main():
    root = pathlib.Path(sys.argv[1]).resolve()
    pages = [page for page in root.rglob("*.md") if not SKIPPED & set(page.relative_to(root).parts)]
    broken, checked = [], 0
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for link in LINK.findall(text):
            if re.match(r"[a-z]+:", link):
                continue
            checked += 1
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists():
                broken.append(f"{page.relative_to(root)}: {link}: no such file")
            elif anchor and target.suffix == ".md" and anchor not in anchors(target):
                broken.append(f"{page.relative_to(root)}: {link}: no such heading")
    listed = {page for book in (root / "docs/src", root / "docs/zh/src") for page in book.rglob("*.md")}
    for summary in (root / "docs/src/SUMMARY.md", root / "docs/zh/src/SUMMARY.md"):
        names = LINK.findall(summary.read_text(encoding="utf-8"))
        listed -= {(summary.parent / name).resolve() for name in names} | {summary}
    broken += [f"{page.relative_to(root)} is in no SUMMARY.md" for page in sorted(listed)]
    if broken:
        raise SystemExit("\n".join(broken))
    print(f"{checked} links of {len(pages)} pages lead somewhere")


if __name__ == "__main__":
    main()
