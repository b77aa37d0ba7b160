"""One quiet JupyterLab and one headless Chromium, both cut off from the network, and a notebook open in them."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NO_CHROMIUM = (
    "no Chromium to open JupyterLab in; install it (Debian, Ubuntu: sudo apt install chromium; macOS: brew install "
    "--cask chromium) or name the program by CHROMIUM=/path/to/chrome"
)
FLAGS = [
    "--no-sandbox",  # containers run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-pings",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--font-render-hinting=none",
]
QUIET = {  # nothing asks, and nothing is fetched
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # keep all cells in the page
}


def find_chromium() -> str | None:
    found = (shutil.which(name) for name in (os.environ.get("CHROMIUM", ""), *PROGRAMS) if name)
    return next((path for path in found if path), None)


@dataclass
class Server:
    address: str
    token: str
    log: Path


@contextlib.contextmanager
def jupyterlab(root: Path, own: Path) -> Iterator[Server]:
    """JupyterLab on `root`; all that it reads and writes for itself lies in `own`."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    settings = own / "config" / "labconfig"
    settings.mkdir(parents=True)
    (settings / "default_setting_overrides.json").write_text(json.dumps(QUIET))
    off = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (settings / "page_config.json").write_text(json.dumps(off))
    folders = {f"JUPYTER_{n}_DIR": str(own / n.lower()) for n in ("CONFIG", "DATA", "RUNTIME")}
    folders |= {f"JUPYTERLAB_{n}_DIR": str(own / n.lower()) for n in ("SETTINGS", "WORKSPACES")}
    environment = {**os.environ, **folders, "IPYTHONDIR": str(own / "ipython")}
    server = Server(f"http://127.0.0.1:{port}", secrets.token_hex(16), own / "log.txt")
    options = {
        "ServerApp.port": port,
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": root,
        "ServerApp.terminals_enabled": False,
        "IdentityProvider.token": server.token,
        "LabApp.expose_app_in_browser": True,
        "LabApp.news_url": "",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.extension_manager": "readonly",
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with server.log.open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            wait_for(server, process)
            yield server
        finally:
            stop(process)


def wait_for(server: Server, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"{server.address}/api/status?token={server.token}", timeout=5).read()
            return
        time.sleep(0.3)
    raise RuntimeError(f"JupyterLab did not start:\n{server.log.read_text()[-2000:]}")


def stop(process: subprocess.Popen) -> None:
    """End the server and its kernels: its session is its own, so nothing else is meant."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5 if sign != signal.SIGINT else 1)
            return


@dataclass
class Lab:
    """An open notebook, and everything that went wrong in it."""

    page: Any
    server: Server
    outside: list[str] = field(default_factory=list)  # requests that wanted to leave the machine
    console: list[str] = field(default_factory=list)  # errors in the browser

    def open(self, name: str) -> None:
        """Open the notebook, run all of its cells, and wait for the last one."""
        page, address = self.page, self.server.address
        page.goto(f"{address}/lab/tree/{name}?token={self.server.token}&reset", wait_until="domcontentloaded")
        page.wait_for_function("() => window.jupyterapp?.restored.then(() => true)", timeout=90_000)
        page.wait_for_function(
            f"() => {KERNEL}?.status === 'idle' && {NOTEBOOK}.content.widgets.length > 0", timeout=90_000
        )
        page.evaluate(f"() => {{ window.failures = []; {KERNEL}.iopubMessage.connect({RECORD}); }}")
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_function(
            f"() => {NOTEBOOK}.content.widgets.every(c => c.model.executionCount) && {KERNEL}.status === 'idle'",
            timeout=120_000,
        )
        # JupyterLab asks a new kernel for its widgets; one that has not imported ipywidgets yet knows none
        page.evaluate(
            "() => { window.failures = window.failures.filter(t => !t.startsWith('No such comm')); }"
        )

    def ask(self, expression: str) -> str:
        """What the kernel answers to `print(expression)`, once it has done all that it was asked before."""
        return self.page.evaluate(ASK, f"print({expression})").strip()

    def failures(self) -> list[str]:
        """Tracebacks and warnings that the kernel sent, and exceptions in the server's log."""
        logged = [
            line
            for line in self.server.log.read_text().splitlines()
            if "Exception" in line or "Traceback" in line
        ]
        return self.page.evaluate("() => window.failures") + logged


NOTEBOOK = "window.jupyterapp.shell.currentWidget"
KERNEL = f"{NOTEBOOK}?.sessionContext?.session?.kernel"
RECORD = """(_, message) => {
  const { msg_type } = message.header, { content } = message;
  if (msg_type === 'error') window.failures.push(content.traceback.join('\\n'));
  if (msg_type === 'stream' && content.name === 'stderr') window.failures.push(content.text);
}"""
ASK = f"""async (code) => {{
  let text = '';
  const future = {KERNEL}.requestExecute({{ code, store_history: false }});
  future.onIOPub = (m) => {{ if (m.header.msg_type === 'stream') text += m.content.text; }};
  await future.done;
  return text;
}}"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    program = find_chromium()
    if program is None:
        pytest.skip(NO_CHROMIUM)
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=program, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def open_lab(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Call it with the cells of a notebook: it opens in a JupyterLab of its own, all cells run."""
    with contextlib.ExitStack() as stack:

        def start(cells: list[str], width: int = 1200) -> Lab:
            root = tmp_path_factory.mktemp("root")
            notebook = new_notebook(cells=[new_code_cell(source) for source in cells])
            notebook.metadata["kernelspec"] = {
                "name": "python3",
                "display_name": "Python 3",
                "language": "python",
            }
            nbformat.write(notebook, root / "page.ipynb")
            server = stack.enter_context(jupyterlab(root, tmp_path_factory.mktemp("lab")))
            context = browser.new_context(viewport={"width": width, "height": 1000})
            stack.callback(context.close)
            lab = Lab(context.new_page(), server)
            lab.page.on("request", lambda r: lab.outside.append(r.url) if leaves(r.url) else None)
            lab.page.on("console", lambda m: lab.console.append(m.text) if m.type == "error" else None)
            lab.page.on("pageerror", lambda error: lab.console.append(str(error)))
            lab.open("page.ipynb")
            return lab

        yield start


def leaves(address: str) -> bool:
    return not address.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))
