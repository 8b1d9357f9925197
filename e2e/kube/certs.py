"""Keys and certificates of a test cluster.

Promise: made anew for each cluster, valid for two days, readable by their owner only.
"""

import datetime
import ipaddress
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")


def make(folder: Path, addresses: Sequence[str]) -> str:
    """Writes ca.crt, srv.crt, srv.key, sa.key, sa.pub and tokens.csv; gives the admin's token."""
    folder.mkdir(parents=True)
    now = datetime.datetime.now(datetime.UTC)
    ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "penstock-test")])
    # kubelet asks who calls it; the API server calls with its own serving certificate, as a master.
    server_name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters"),
            x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver"),
        ]
    )
    names = [x509.DNSName(name) for name in _NAMES] + [x509.IPAddress(ipaddress.ip_address(one)) for one in addresses]

    def certificate(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder().subject_name(subject).issuer_name(ca_name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
        )  # fmt: skip

    ca = certificate(ca_name, ca_key).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    server = (
        certificate(server_name, server_key)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    _write(folder / "ca.crt", ca.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    _write(folder / "srv.crt", server.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    _write(folder / "srv.key", _pem(server_key))
    accounts = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = accounts.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _write(folder / "sa.key", _pem(accounts))
    _write(folder / "sa.pub", public)
    token = secrets.token_hex(16)
    _write(folder / "tokens.csv", f"{token},admin,admin,system:masters\n".encode())
    return token


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    form, plain = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain)


def _write(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
