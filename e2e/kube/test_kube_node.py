"""The real node: pods run, are reached by name and through a Service, and know the API server."""

import pytest
from kube.asked import or_skip
from kube.node import IMAGE, node
from kube.waiting import until

pytestmark = pytest.mark.e2e

WEB = "import http.server as h; h.ThreadingHTTPServer(('', 8080), h.SimpleHTTPRequestHandler).serve_forever()"


@pytest.fixture(scope="module")
def real(say):
    with or_skip(node, say, "node") as found:
        yield found


def test_pods_serve_behind_a_service_as_nobody_in_particular(real):
    labels = {"app": "web"}
    safe = {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True,
        "runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    container = {
        "name": "web", "image": IMAGE, "command": ["python", "-c", WEB], "workingDir": "/tmp", "securityContext": safe,
        "imagePullPolicy": "IfNotPresent", "ports": [{"containerPort": 8080}],
        "readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1}, "resources": {"requests": {"cpu": "100m"}},
    }  # fmt: skip
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [container], "terminationGracePeriodSeconds": 1}}
    meta = {"name": "web", "namespace": "default"}
    real.apply(
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta,
            "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": pod},
        },
        {
            "apiVersion": "v1", "kind": "Service", "metadata": meta,
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    )  # fmt: skip
    real.kubectl("rollout", "status", "deployment/web", "--timeout=90s", seconds=100)
    name = real.objects("pods", "-l", "app=web")[0]["metadata"]["name"]
    ask = "import urllib.request as u; print(u.urlopen('http://web.default.svc.cluster.local', timeout=5).status)"
    until(lambda: real.kubectl("exec", name, "--", "python", "-c", ask, check=False).strip() == "200")
    version = "https://kubernetes.default.svc/version"
    trusted = "ssl.create_default_context(cafile='/var/run/secrets/kubernetes.io/serviceaccount/ca.crt')"
    api = f"import urllib.request as u, ssl; print(u.urlopen('{version}', context={trusted}, timeout=5).status)"
    until(lambda: real.kubectl("exec", name, "--", "python", "-c", api, check=False).strip() == "200")
    assert "penstock_router" in real.kubectl("exec", name, "--", "python", "-c", "import penstock_router; print(penstock_router)")
    assert "GET / HTTP" in real.kubectl("logs", name)
    real.kubectl("delete", "deployment/web", "service/web")
    until(lambda: not real.objects("pods", "-l", "app=web"))
