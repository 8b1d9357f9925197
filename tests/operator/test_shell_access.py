"""Credentials: where they are looked for, and that they are never told."""

import base64
import json

import pytest

from penstock_operator.shell.access import NoAccess, find_access, from_kubeconfig


def write(folder, user, cluster=None):
    cluster = cluster or {"server": "https://h:1/", "certificate-authority-data": base64.b64encode(b"PEM").decode()}
    path = folder / "config"
    document = {
        "current-context": "c",
        "contexts": [{"name": "other", "context": {}}, {"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(json.dumps(document))
    return path


def test_the_current_context_is_read(tmp_path):
    access = from_kubeconfig(write(tmp_path, {"token": "secret"}))
    assert (access.server, access.ca_pem, access.token) == ("https://h:1", "PEM", "secret")


def test_files_are_found_beside_the_kubeconfig_and_a_token_file_is_read_each_time(tmp_path):
    (tmp_path / "ca").write_text("CA")
    (tmp_path / "t").write_text("one\n")
    access = from_kubeconfig(write(tmp_path, {"tokenFile": "t"}, {"server": "https://h", "certificate-authority": "ca"}))
    assert (access.ca_pem, access.token) == ("CA", "one")
    (tmp_path / "t").write_text("two\n")
    assert access.token == "two"


def test_a_client_certificate_needs_its_key(tmp_path):
    pem = base64.b64encode(b"X").decode()
    assert from_kubeconfig(write(tmp_path, {"client-certificate-data": pem})).client_pem is None
    both = {"client-certificate-data": pem, "client-key-data": pem}
    assert from_kubeconfig(write(tmp_path, both)).client_pem == ("X", "X")


def test_secrets_are_not_in_the_repr(tmp_path):
    pem = base64.b64encode(b"PRIVATE").decode()
    user = {"token": "secret", "client-certificate-data": pem, "client-key-data": pem}
    said = repr(from_kubeconfig(write(tmp_path, user)))
    assert "secret" not in said
    assert "PRIVATE" not in said


@pytest.mark.parametrize("text", ["", "[]", "{}", "current-context: gone\ncontexts: []", "\t"])
def test_a_file_that_says_nothing_is_refused_by_its_name(tmp_path, text):
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(NoAccess, match="config"):
        from_kubeconfig(path)


def test_the_variable_goes_first_and_nothing_at_all_is_refused(tmp_path):
    path = write(tmp_path, {"token": "t"})
    assert find_access({"KUBECONFIG": str(path), "HOME": "/nowhere"}).token == "t"
    with pytest.raises(NoAccess, match="no KUBECONFIG"):
        find_access({"HOME": "/nowhere"})


def test_plain_http_has_no_tls(tmp_path):
    assert from_kubeconfig(write(tmp_path, {}, {"server": "http://127.0.0.1:1"})).tls() is None
