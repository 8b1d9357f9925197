"""A container image without a registry: directories to mount the host's into, and nothing else.

Promise: what `ctr images import` reads; every container of the node sees the host's /usr, the virtual environment and this
checkout read-only at their own paths, so that manifests under test need no hostPath.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

# The first process of a pod only has to last. It does not get the host's directories: the image holds it and its libraries.
_PAUSE = shutil.which("sleep") or "/usr/bin/sleep"
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\npenstock:x:10001:10001::/tmp:/bin/bash\nray:x:1000:1000::/tmp:/bin/bash\n",
    "etc/group": "root:x:0:\npenstock:x:10001:\nray:x:1000:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
_FOLDERS = ("proc", "sys", "dev", "run", "var", "home", "etc", "root")


def write(path: Path, name: str, mounts: Sequence[str], search: str, links: Mapping[str, str] = MappingProxyType({})) -> None:
    """`links`: further names in the image's root, of files below `mounts`."""
    layer = _layer(mounts, {**_LINKS, **links})
    digest = hashlib.sha256(layer).hexdigest()
    runs = {
        "Env": [f"PATH={search}", "LANG=C.UTF-8", "HOME=/tmp", "PYTHONSAFEPATH=1"],
        "Entrypoint": _pause()[0],
        # By number: a pod that must not run as root is refused where its image only names a user.
        "User": "10001:10001",
        "WorkingDir": "/",
    }
    layers = {"type": "layers", "diff_ids": [f"sha256:{digest}"]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": runs, "rootfs": layers}).encode()
    title = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": title, "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]}]).encode()
    with tarfile.open(path, "w") as archive:
        for member, content in ((title, config), (f"{digest}/layer.tar", layer), ("manifest.json", manifest)):
            _file(archive, member, content)


def _pause() -> tuple[list[str], dict[str, Path]]:
    """How to start it, and the files it needs: name in the image -> file of the host."""
    linked = subprocess.run(["ldd", _PAUSE], capture_output=True, text=True, check=True).stdout
    files = {Path(word).name: Path(word) for word in linked.split() if word.startswith("/")} | {"sleep": Path(_PAUSE)}
    loader = next(name for name in files if name.startswith("ld-"))
    return [f"/pause/{loader}", "--library-path", "/pause", "/pause/sleep", "infinity"], files


def _layer(mounts: Iterable[str], links: Mapping[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as layer:
        parents = {str(one).strip("/") for mount in mounts for one in (Path(mount), *Path(mount).parents)} - {""}
        for folder in sorted(parents | set(_FOLDERS)):
            _folder(layer, folder, 0o755)
        for folder in ("tmp", "var/tmp"):
            _folder(layer, folder, 0o1777)
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, target, 0o777
            layer.addfile(entry)
        for name, text in _FILES.items():
            _file(layer, name, text.encode())
        for name, source in _pause()[1].items():
            _file(layer, f"pause/{name}", source.read_bytes(), 0o755)
    return out.getvalue()


def _folder(archive: tarfile.TarFile, name: str, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    archive.addfile(entry)


def _file(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def mounts(shared: Iterable[Path]) -> list[str]:
    """Host directories that containers see: the system's and these; none lies inside of another."""
    wanted = ["/usr", "/etc/ssl", "/etc/alternatives", *(str(one) for one in shared)]
    present = [one for one in dict.fromkeys(wanted) if os.path.isdir(one)]
    return [one for one in present if not any(one != other and one.startswith(f"{other}/") for other in present)]
