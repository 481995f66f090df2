"""The dashboard of a real cluster, in a real browser.

``IPYTHON1_SHOTS=docs/_static`` has it take the pictures of the documentation, among others.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipython1.kernel import client
from ipython1.kernel.error import CompositeError
from ipython1.kernel.files import ClusterFiles
from ipython1.launch.state import State
from ipython1.web.guard import token_of
from tests.chromium import Chromium, find
from tests.integration.test_ipcluster import Running, environment, ipcluster

pytestmark = pytest.mark.timeout(180)
REQUIRED = os.environ.get("IPYTHON1_REQUIRE_SERVICES") == "1"
BUSY = "import time; t = time.time() + 60\nwhile time.time() < t: pass"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    path = find()
    if path is None:
        reason = "there is no Chromium; install it with: apt-get install chromium"
        pytest.fail(reason) if REQUIRED else pytest.skip(reason)
    made = Chromium(path)
    try:
        yield made
    finally:
        made.close()


def address(kind: str = "multiengine") -> str:
    """Of the dashboard, with the token that belongs to a FURL."""
    files = ClusterFiles("default")
    place = State.read(files).dashboard.partition("?")[0]
    return f"{place}?token={token_of(files.furl(kind).read_text())}"


def row(id: int, cell: int) -> str:
    """JavaScript for the text of a cell."""
    return f"document.querySelector('#table tr[data-id=\"{id}\"]')?.cells[{cell}].textContent"


def shot(browser: Chromium, name: str) -> None:
    """Save what is seen, where that is asked for."""
    folder = os.environ.get("IPYTHON1_SHOTS")
    if folder:
        browser.screenshot(Path(folder) / f"{name}.png")


def test_the_printed_address_is_the_acting_one(cluster: Running) -> None:
    assert State.read(ClusterFiles("default")).dashboard == address()
    assert ipcluster("dashboard").stdout == address() + "\n"
    assert ipcluster("dashboard", "--look").stdout == address("view") + "\n"


def test_a_click_interrupts(cluster: Running, mec: client.MultiEngineClient, browser: Chromium) -> None:
    browser.look(1280, 1000)
    browser.console.clear()
    browser.open(address())
    browser.until(f"{row(0, 6)} === '' && {row(1, 6)} === ''")
    assert browser.run("location.search") == "", "the token is not left in the address bar"
    pending = mec.execute(BUSY, targets=1, block=False)
    browser.until(f"{row(1, 6)}.startsWith('import time')")
    browser.until(f"/^[1-9]/.test({row(1, 7)})")  # it counts the seconds
    shot(browser, "busy")
    browser.click('#table tr[data-id="1"] button[data-action="interrupt"]')
    with pytest.raises(CompositeError, match="KeyboardInterrupt"):
        pending.get_result(timeout=10)
    browser.until(f"{row(1, 6)} === ''")
    browser.until("document.querySelector('#note').textContent.startsWith('Interrupt of engine 1: sent')")
    assert mec.apply(abs, -7, targets=1) == [7], "the engine lives"
    assert browser.console == []


def test_the_keyboard_alone_restarts(
    cluster: Running, mec: client.MultiEngineClient, browser: Chromium
) -> None:
    browser.open(address())
    browser.until(row(0, 0))
    before = mec.status()[0]["pid"]
    browser.run('document.querySelector(\'#table tr[data-id="0"] button[data-action="restart"]\').focus()')
    browser.press(["Enter"])
    browser.until("document.querySelector('#sure').open")
    assert browser.run("document.activeElement.value") == "no", "Enter twice does not lose a namespace"
    browser.press(["Escape"])
    browser.until("!document.querySelector('#sure').open")
    browser.press(["Enter"])
    browser.until("document.querySelector('#sure').open")
    browser.run("document.querySelector('#sure-yes').focus()")
    browser.press(["Enter"])
    browser.until(f"{row(0, 9)} === '1' && {row(0, 3)} === 'ready' && {row(0, 2)} !== '{before}'")
    browser.until("document.querySelectorAll('#incidents tr').length >= 2")
    words = browser.run("[...document.querySelectorAll('#incidents tr')].map((r) => r.cells[2].textContent)")
    assert words[:2] == ["restarted", "died"]


def test_it_is_live(cluster: Running, mec: client.MultiEngineClient, browser: Chromium) -> None:
    browser.open(address())
    browser.until(row(0, 0))
    mec.execute("print('<b>over here</b>')", targets=0)
    browser.until("document.querySelector('#log').textContent.includes('<b>over here</b>')")
    assert browser.run(
        "document.querySelectorAll('#log b').length === document.querySelectorAll('#log > div').length"
    )
    ended = int(
        browser.run("document.querySelectorAll('#summary dd span')[3].textContent").replace("\u202f", "")
    )
    for _ in range(20):
        mec.execute("a = 1")
    browser.until(
        f"document.querySelectorAll('#summary dd span')[3].textContent.replace('\u202f', '') == {ended + 40}"
    )
    browser.until("/[1-9] clients?/.test(document.querySelector('#counts').textContent)")


def test_what_ran_can_be_read_with_the_keyboard(
    cluster: Running, mec: client.MultiEngineClient, browser: Chromium
) -> None:
    mec.execute("import time; time.sleep(0.2)  # this one", targets=0)
    browser.open(address())
    browser.until(row(0, 0))
    browser.run("document.querySelector('#timeline').focus()")
    browser.press(["ArrowLeft", "ArrowRight"])  # from the newest, and back to it
    text = browser.run("document.querySelector('#span').textContent")
    what = r"“import time; time\.sleep\(0\.2\)  # this one”, 2\d\d ms \("
    assert re.match(r"Engine 0, \d+:\d\d:\d\d.*: " + what, text), text
    browser.press(["ArrowDown"])
    assert browser.run("document.querySelector('#span').textContent").startswith("Engine 1, ")


def test_those_who_look_cannot_act(
    cluster: Running, mec: client.MultiEngineClient, browser: Chromium
) -> None:
    browser.run("document.cookie")
    browser.open(address("view"))
    browser.until(f"{row(0, 0)} && document.querySelector('.actions').hidden")
    assert browser.run("document.querySelectorAll('#table button[data-action]').length") == 0
    assert browser.run("document.querySelector('#output').hidden")
    post = "fetch('interrupt', {method: 'POST', body: JSON.stringify({engines: [0]})}).then((r) => r.status)"
    assert browser.run(post) == 403


def test_names_for_a_screen_reader(cluster: Running, browser: Chromium) -> None:
    browser.open(address())
    browser.until(row(0, 0))
    nodes = browser.page("Accessibility.getFullAXTree")["nodes"]
    by_role: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            name = str(node.get("name", {}).get("value", ""))
            by_role.setdefault(str(node["role"]["value"]), []).append(name)
    named = ("button", "combobox", "searchbox", "image", "region", "columnheader")
    assert {role: "" in by_role.get(role, []) for role in named} == dict.fromkeys(named, False)
    assert {"Interrupt engine 0", "Restart engine 1"} <= set(by_role["button"])
    assert "rowheader" in by_role
    assert by_role["heading"][0].startswith("ipython1")


def test_it_comes_back_with_the_controller(
    cluster: Running, mec: client.MultiEngineClient, browser: Chromium
) -> None:
    browser.open(address())
    browser.until(row(0, 0))
    before = State.read(ClusterFiles("default")).controller
    os.kill(before, 9)
    browser.until("document.querySelector('#link').dataset.state === 'away'")
    browser.until("document.querySelector('#link').dataset.state === 'live'", timeout=60)
    browser.until(f"{row(0, 3)} === 'ready' && {row(1, 3)} === 'ready'", timeout=60)
    assert State.read(ClusterFiles("default")).controller != before


def test_metrics_and_health_without_a_browser(cluster: Running, mec: client.MultiEngineClient) -> None:
    mec.execute("a = 1")
    place, _, token = address("view").partition("?token=")
    asked = urllib.request.Request(place + "metrics", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        text = answer.read().decode()
    assert 'ipython1_engines{state="ready"} 2' in text
    with urllib.request.urlopen(place + "health", timeout=10) as answer:
        assert answer.read() == b"ok\n"


def test_the_command_saves_a_timeline(
    cluster: Running, mec: client.MultiEngineClient, tmp_path: Path
) -> None:
    mec.execute("a = 1")
    for name in ("t.svg", "t.json"):
        done = ipcluster("timeline", "-o", os.fspath(tmp_path / name))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"saved        {tmp_path / name}  <Timeline: ")
        assert (tmp_path / name).stat().st_size > 500
    wrong = ipcluster("timeline", "-o", os.fspath(tmp_path / "t.pdf"))
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert ".svg, .png or .json" in wrong.stderr


SIMULATION = """
import random, time
def sweep(n):
    time.sleep(random.uniform(0.1, 0.6))
    print(f'sweep {n}: energy {-1.5 + 0.3 / (n + 1):.4f}, accepted {random.uniform(0.38, 0.44):.2f}')
"""


def test_work_of_a_cluster_is_seen(ipython1_dir: Path, browser: Chromium) -> None:
    cluster = client.Cluster(n=4)
    with cluster as mec:
        browser.look(1280, 1000)
        browser.open(State.read(ClusterFiles(cluster.cluster)).dashboard)
        browser.until(row(3, 0))
        mec.execute(SIMULATION)
        tasks = mec.task_client()
        died = mec.execute("import os; os.kill(os.getpid(), 9)  # too large", targets=3, block=False)
        for n in range(5):
            sweeps = [mec.execute(f"sweep({n})", targets=engine, block=False) for engine in (0, 1, 2)]
            tasks.map(time.sleep, [0.02 * (1 + i % 5) for i in range(60)], chunksize=2)
            failed = mec.execute("1 / 0", targets=n % 3, block=False)
            mec.barrier([*sweeps, failed])
        mec.wait_for_engines(4)
        assert "EngineDied" in repr(died.exception())
        running = [
            mec.execute("time.sleep(60)  # equilibrate(grid)", targets=[0, 2], block=False) for _ in (1, 2)
        ]
        browser.run(
            "const w = document.querySelector('#window'); w.value = '60';w.dispatchEvent(new Event('change'))"
        )
        browser.until(
            f"{row(0, 6)}.startsWith('time.sleep') && {row(2, 8)} >= '1' && /^[1-9]/.test({row(2, 7)})"
        )
        words = browser.run(
            "[...document.querySelectorAll('#incidents tr')].map((r) => r.cells[2].textContent)"
        )
        assert words == ["restarted", "died"]
        browser.until("document.querySelector('#log').textContent.match(/sweep \\d:/g).length === 15")
        shot(browser, "dashboard-4")
        assert {span["engine"] for span in mec.timeline().spans} == {0, 1, 2, 3}
        for pending in running:
            pending.abort(interrupt=True)


@pytest.mark.parametrize("n", [4, 500])
def test_any_number_of_engines_can_be_used(browser: Chromium, n: int) -> None:
    serving = subprocess.Popen(
        [sys.executable, "-m", "tests.dashboards", str(n)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert serving.stdout is not None
        url = serving.stdout.readline().split()[0]
        browser.look(1280, 1000, dark=n > 4)
        began = time.monotonic()
        browser.open(url)
        browser.until(f"document.querySelectorAll('#table tbody tr').length === {n}")
        assert time.monotonic() - began < 20
        browser.until("document.querySelectorAll('#log > div').length >= 4")
        shot(browser, "dashboard-500" if n == 500 else "made-up")
        assert browser.run("document.documentElement.scrollWidth") == 1280
        # Drawing all of it takes a part of the time between two changes.
        cost = browser.run(
            "new Promise((resolve) => { const t = performance.now();"
            "document.querySelector('#window').dispatchEvent(new Event('change'));"
            "requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - t))); })"
        )
        assert cost < 500
        browser.run(
            "const f = document.querySelector('#find'); f.value = '3'; f.dispatchEvent(new Event('input'))"
        )
        assert browser.run("document.querySelectorAll('#table tbody tr').length") == 1
        browser.look(390, 800)
        browser.until("document.documentElement.scrollWidth === 390")
    finally:
        serving.terminate()
        serving.communicate()
