"""A crawl of some documentation, whose server and engines fail on the way.

    ipcluster run -n 4 docs/examples/crawl_docs.py [PACKAGES]

Python's ``pydoc`` writes pages about packages of the standard library into a
temporary folder, and a web server in this process serves them, on this
computer only, each after 20 ms. A task fetches and parses one page, and each
new link makes a new task. Every sixth page is "503 Service Unavailable" at
first: its task raises, and is tried again. One task kills its own engine: it
runs again on another one. Many links of these pages lead nowhere, which is a
result and no failure. What is found equals what a serial crawl finds.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib
import os
import pkgutil
import pydoc
import signal
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from html.parser import HTMLParser
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlsplit

from ipython1.kernel import client

PACKAGES = ["asyncio", "email", "json", "logging", "multiprocessing", "unittest", "urllib", "xml", "wsgiref"]
#: How often a page is tried again.
RETRIES = 3
#: Pages before the one whose task kills its engine.
KILL_AFTER = 5
#: Seconds that the server takes for a page, besides its work.
LATENCY = 0.02


class Links(HTMLParser):
    """Collects what a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One tag of the page."""
        self.found.update(value for name, value in attrs if tag == "a" and name == "href" and value)


def fetch(url: str, deadly: str = "") -> list[str] | None:
    """The pages of the same server that a page links to; None: there is no such page.

    Parameters
    ----------
    url : str
    deadly : str
        The path of a file; where it is there, it is removed and this process killed.
    """
    if deadly and os.path.exists(deadly):
        os.remove(deadly)
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == HTTPStatus.NOT_FOUND:
            return None
        raise OSError(f"{url}: {error}") from None
    page = Links()
    page.feed(text)
    found = {urldefrag(urljoin(url, link)).url for link in page.found}
    return sorted(link for link in found if urlsplit(link)[:2] == urlsplit(url)[:2])


Site = dict[str, "list[str] | None"]


def crawl_serially(start: str) -> Site:
    """Every page that can be reached, and what it links to."""

    def fetch_at_last(url: str) -> list[str] | None:
        for _ in range(RETRIES):
            try:
                return fetch(url)
            except OSError:
                pass  # try again
        return fetch(url)

    site: Site = {start: None}
    waiting = deque(site)
    while waiting:
        url = waiting.popleft()
        site[url] = fetch_at_last(url)
        new = [link for link in site[url] or () if link not in site]
        site.update(dict.fromkeys(new))
        waiting += new
    return site


def crawl_by_tasks(tc: client.TaskClient, start: str, deadly: str) -> Site:
    """The same, by tasks; one of them kills its engine."""
    site: Site = {}
    waiting: deque[tuple[str, str]] = deque()

    def visit(url: str) -> None:
        arguments = (url, deadly) if len(site) == KILL_AFTER else (url,)
        site[url] = None
        task = client.MapTask(fetch, arguments, retries=RETRIES, label=f"fetch {url}")
        waiting.append((url, tc.run(task)))

    visit(start)
    while waiting:
        url, task_id = waiting.popleft()
        result = tc.get_task_result(task_id, block=True)
        result.raise_exception()
        site[url] = result.results
        for link in result.results or ():
            if link not in site:
                visit(link)
    return site


def write_pages(folder: Path, packages: list[str]) -> None:
    """Pages about packages and their modules, and one that links to the packages."""
    for package in packages:
        modules = pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}.")
        names = [package, *(module.name for module in modules if not module.name.endswith("__main__"))]
        for name in names:
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue  # it is for another operating system
            page = pydoc.html.page(name, pydoc.html.document(module, name))
            (folder / f"{name}.html").write_text(page, encoding="utf-8")
    links = "".join(f'<a href="{package}.html">{package}</a>\n' for package in packages)
    (folder / "index.html").write_text(links, encoding="utf-8")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; the pages in `unavailable` only the second time."""

    unavailable: set[str]

    def do_GET(self) -> None:
        """Answer a request."""
        time.sleep(LATENCY)
        name = self.path.lstrip("/") or "index.html"
        if name in self.unavailable:
            self.unavailable.remove(name)
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            super().do_GET()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A web server for a folder; the address of its first page."""
    handler = functools.partial(Handler, directory=os.fspath(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def main(packages: list[str]) -> int:
    """Crawl twice, compare, print; the exit status."""
    with tempfile.TemporaryDirectory() as name, client.TaskClient() as tc:
        folder = Path(name)
        write_pages(folder, packages)
        flaky = {path.name for path in sorted(folder.iterdir())[::6]}
        deadly = folder / "deadly"
        with served(folder) as start:
            Handler.unavailable = set(flaky)
            started = time.perf_counter()
            serial = crawl_serially(start)
            serial_time = time.perf_counter() - started

            Handler.unavailable = set(flaky)
            deadly.touch()
            engines = len(tc.ids)
            started = time.perf_counter()
            parallel = crawl_by_tasks(tc, start, os.fspath(deadly))
            parallel_time = time.perf_counter() - started
        killed = not deadly.exists()

    links = sum(len(found or ()) for found in parallel.values())
    broken = sorted(urlsplit(url).path[1:] for url, found in parallel.items() if found is None)
    print(f"{len(parallel) - len(broken)} pages with {links:,} links to {len(parallel)} addresses")
    print(f"{len(broken)} of these are broken, among them {', '.join(broken[:4])}")
    refused = len(flaky - Handler.unavailable)
    print(f"{refused} were unavailable at first, and {int(killed)} engine was killed on the way")
    print(f"serial {serial_time:.3f} s, {engines} engines {parallel_time:.3f} s")
    if parallel != serial:
        print("serial and parallel crawls DIFFER", file=sys.stderr)
        return 1
    if refused != len(flaky) or not killed:
        print("less FAILED than was to fail", file=sys.stderr)
        return 1
    print("serial and parallel crawls are equal")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or PACKAGES))
