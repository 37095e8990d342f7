"""The other servers: installed into a cache outside of the repository, then described."""

import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from contestants import (
    Contestant,
    cores,
    output_of,
)
from scenarios import AIOHTTP_OK, NCHAN

NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
PROGRAMS = {  # Debian package -> what it is there for
    "nginx-light": lambda: shutil.which("nginx"),
    "libnginx-mod-nchan": NCHAN_MODULE.exists,
    "nodejs": lambda: shutil.which("node"),
    "npm": lambda: shutil.which("npm"),
    "wrk": lambda: shutil.which("wrk"),
}


@dataclass
class Peers:
    contestants: list = field(default_factory=list)
    ok: Contestant = None  # the measure of plain requests
    versions: dict = field(default_factory=dict)


def cache_folder():
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    chosen = os.environ.get("SSE_CI_CACHE") or Path(home, "sse_server-ci")
    folder = Path(chosen, "bench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def install_programs():
    missing = [package for package, present in PROGRAMS.items() if not present()]
    if missing:
        output_of(["apt-get", "update", "-q"])
        output_of(
            ["apt-get", "install", "-q", "-y", "--no-install-recommends", *missing]
        )


def install_python(folder, drivers):
    venv = folder / "venv"
    python = venv / "bin" / "python"
    if not python.exists():
        output_of([sys.executable, "-m", "venv", venv])
    requirements = drivers / "requirements.txt"
    output_of([python, "-m", "pip", "install", "-q", "-r", requirements])
    output_of([python, "-m", "compileall", "-q", drivers])
    return python


def install_node(folder, drivers):
    """The packages, and a link to them beside the drivers that require() them."""
    node = folder / "node"
    node.mkdir(exist_ok=True)
    shutil.copy(drivers / "package.json", node)
    output_of(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=node)
    (drivers / "node_modules").symlink_to(node / "node_modules")


def install(drivers):
    """Install what is missing, and describe how each is started."""
    install_programs()
    folder = cache_folder()
    python = install_python(folder, drivers)
    install_node(folder, drivers)
    nchan = [sys.executable, drivers / "nchan.py", cores()[0], NCHAN_MODULE]
    return Peers(
        [
            Contestant(NCHAN, nchan, driver_is_publisher=True),
            Contestant("Node http", ["node", drivers / "node_http.js"]),
            Contestant("Koa", ["node", drivers / "koa.js"]),
            Contestant("better-sse", ["node", drivers / "better_sse.js"]),
            Contestant("aiohttp-sse", [python, drivers / "aiohttp_sse_server.py"]),
            Contestant("sse-starlette", [python, drivers / "sse_starlette_server.py"]),
            Contestant("our stream()", [python, drivers / "ours_in_starlette.py"]),
        ],
        Contestant(AIOHTTP_OK, [python, drivers / "aiohttp_ok.py"]),
        versions(drivers),
    )


def versions(drivers):
    """What was measured: Debian's packages, Node, and what the drivers pin."""
    debian = output_of(
        ["dpkg-query", "-W", "-f", "${Package} ${Version}\n"]
        + ["nginx-light", "libnginx-mod-nchan"]
    )
    python = (drivers / "requirements.txt").read_text().replace("==", " ")
    node = json.loads((drivers / "package.json").read_text())["dependencies"]
    found = [*debian.splitlines(), f"node {output_of(['node', '-v']).strip()}"]
    found += [f"{name} {version}" for name, version in node.items()]
    return {"peers": ", ".join(found + python.splitlines())}
