"""What the site needs beside mkdocs.yml: pages of docs/ link to files of the repository, which become pages, too.

So links work as they stand, on the site as in the repository; no file is copied, and no address is written down.
"""

import posixpath
import re
from itertools import chain
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/*/README.md", "benchmarks/results/*.md", "envs/Dockerfile")
"""Files outside of docs/ that belong to the site."""
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside of docs/ under their paths in the repository."""
    for path in sorted(set(chain.from_iterable(map(ROOT.glob, OUTSIDE)))):
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Let links lead from a file's place on the site to that of the other file, and links to a folder to its README."""
    here = posixpath.dirname(page.file.src_uri)
    folder = Path(page.file.abs_src_path).parent

    def moved(link: re.Match) -> str:
        target = (folder / link[1]).resolve()
        if target.is_dir():
            target /= "README.md"
        name = target.relative_to(ROOT).as_posix().removeprefix("docs/")
        return posixpath.relpath(name, here or ".")

    return LINK.sub(moved, markdown)
