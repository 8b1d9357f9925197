"""How to reach the API server: in a pod, or by a kubeconfig.

Promise: one answer for our own client and for Kopf. A service account's token is read anew when asked for, because kubelet
replaces it in place.
"""

import base64
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class NoAccess(Exception):
    """No usable credentials; the message says where they were looked for."""


@dataclass(frozen=True, slots=True)
class Access:
    server: str
    ca_pem: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    fixed_token: str | None = field(default=None, repr=False)
    client_pem: tuple[str, str] | None = field(default=None, repr=False)  # certificate, key

    @property
    def token(self) -> str | None:
        return self.token_file.read_text().strip() if self.token_file else self.fixed_token

    def tls(self) -> ssl.SSLContext | None:
        """None for plain HTTP, which is for tests on loopback."""
        if not self.server.startswith("https:"):
            return None
        context = ssl.create_default_context(cadata=self.ca_pem)
        if self.client_pem:
            # The ssl module takes a client's key from a file only.
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as pem:
                pem.write("\n".join(self.client_pem))
                pem.flush()
                context.load_cert_chain(pem.name)
        return context


def find_access(environ: Mapping[str, str]) -> Access:
    """KUBECONFIG first, then the pod's service account, then ~/.kube/config."""
    if environ.get("KUBECONFIG"):
        return from_kubeconfig(Path(environ["KUBECONFIG"].split(os.pathsep)[0]))
    if (_ACCOUNT / "token").exists() and environ.get("KUBERNETES_SERVICE_HOST"):
        host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
        server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        return Access(server, (_ACCOUNT / "ca.crt").read_text(), _ACCOUNT / "token")
    home = Path(environ.get("HOME", "/")) / ".kube/config"
    if home.exists():
        return from_kubeconfig(home)
    raise NoAccess(f"no KUBECONFIG, no service account in {_ACCOUNT}, no {home}")


def from_kubeconfig(path: Path) -> Access:
    """The current context's server with a token or a client certificate; helper programs are not run."""
    try:
        document = yaml.safe_load(path.read_text())
        context = _named(document, "contexts", document["current-context"])["context"]
        cluster = _named(document, "clusters", context["cluster"])["cluster"]
        user = _named(document, "users", context["user"])["user"] or {}
        certificate, key = _inline(user, "client-certificate", path), _inline(user, "client-key", path)
        token_file = user.get("tokenFile")
        return Access(
            server=cluster["server"].rstrip("/"),
            ca_pem=_inline(cluster, "certificate-authority", path),
            token_file=path.parent / token_file if token_file else None,
            fixed_token=user.get("token"),
            client_pem=(certificate, key) if certificate and key else None,
        )
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise NoAccess(f"{path}: {type(error).__name__} {error}") from error


def _named(document: Mapping[str, Any], section: str, name: str) -> Mapping[str, Any]:
    for entry in document[section]:
        if entry["name"] == name:
            found: Mapping[str, Any] = entry
            return found
    raise KeyError(f"{section} has no {name!r}")


def _inline(section: Mapping[str, Any], key: str, path: Path) -> str | None:
    if f"{key}-data" in section:
        return base64.b64decode(section[f"{key}-data"]).decode()
    return (path.parent / section[key]).read_text() if key in section else None
