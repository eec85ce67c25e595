"""Copies of the manifests with one mistake each, to see that the checks find it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

DEPLOYMENT = "server/deployment.yaml"
SERVICE = "server/service.yaml"
POLICY = "server/network-policy.yaml"
BUDGET = "server/disruption-budget.yaml"
JOB = "annotate/job.yaml"
SITE = "site/kustomization.yaml"
SETTINGS = "site/settings.env"

# file, text, its replacement (the first occurrence), and a part of the expected problem
MISTAKES = [
    # found by the schemas
    (DEPLOYMENT, "terminationGracePeriodSeconds:", "terminationPeriod:", "'terminationPeriod' was unexpected"),
    (DEPLOYMENT, "containerPort: 9090", 'containerPort: "9090"', "containerPort: '9090' is not of type 'integer'"),
    (DEPLOYMENT, "- name: groundling\n          image", "- image", "'name' is a required"),
    (DEPLOYMENT, "  selector:\n    matchLabels:", "  selector:\n    matchLabel:", "'matchLabel' was unexpected"),
    (DEPLOYMENT, "                seconds: 5", "                duration: 5", "'seconds' is a required"),
    (BUDGET, "policy/v1", "policy/v1beta1", "Couldn't find schema"),
    (BUDGET, "maxUnavailable: 1", "maxUnavailable: [1]", "maxUnavailable"),
    (SERVICE, "port: 9090", "port: http", "ports.0.port"),
    (POLICY, "cidr: 0.0.0.0/0", "cidrs: 0.0.0.0/0", "'cidr' is a required"),
    (JOB, "backoffLimitPerIndex: 3", "backoffLimitPerIndex: three", "backoffLimitPerIndex"),
    # found when it is built
    (SITE, "  - settings.env\n", "  - setting.env\n", "kubectl kustomize"),
    ("options/gpu/kustomization.yaml", "resources/requests/memory", "resources/request/memory", "kubectl kustomize"),
    # found by the relations
    (
        DEPLOYMENT,
        "      labels:\n        app.kubernetes.io/name: groundling\n        app.kubernetes.io/component: server\n",
        "      labels:\n        app.kubernetes.io/name: groundling\n",
        "the Deployment does not select",
    ),
    (JOB, "        app.kubernetes.io/component: annotate", "        app.kubernetes.io/component: server", "of the job"),
    (SERVICE, "targetPort: http", "targetPort: web", "target port web"),
    (SERVICE, "    app.kubernetes.io/component: server\n  p", "    tier: web\n  p", "the Service does not select"),
    ("server/autoscaler.yaml", "Deployment\n    name: groundling", "Deployment\n    name: server", "does not target"),
    (BUDGET, "      app.kubernetes.io/component: server", "      tier: web", "Budget does not"),
    (POLICY, "      app.kubernetes.io/name: groundling\n  p", "      app: groundling\n  p", "does not select the pods"),
    (POLICY, "port: 9090", "port: 9091", "opens 9091"),
    (SETTINGS, "LOG_FORMAT=", "LOG_FORMATS=", "LOG_FORMATS is no setting"),
    (SETTINGS, "LOG_FORMAT=json", "HF_TOKEN=token", "HF_TOKEN must be in the Secret"),
    (SETTINGS, "LOG_FORMAT=json", "CACHE_DIR=/var/cache", "CACHE_DIR is /var/cache"),
    (SETTINGS, "LOG_FORMAT=json", "PORT=8080", "PORT is 8080"),
    (SETTINGS, "LOG_FORMAT=json", "BIND_ADDRESS=127.0.0.1", "no other pod can connect"),
    (DEPLOYMENT, "secretRef:\n                name: g", "secretRef:\n                name: G", "not get the Secret"),
    (DEPLOYMENT, "    name: groundling-settings", "    name: settings", "settings does not exist"),
    (DEPLOYMENT, "path: /ready", "path: /readyz", "/readyz is no route"),
    (DEPLOYMENT, "path: /ready", "path: /health", "/health needs credentials"),
    (DEPLOYMENT, "terminationGracePeriodSeconds: 20", "terminationGracePeriodSeconds: 13", "must be above 13"),
    (DEPLOYMENT, "sleep:\n                seconds: 5", "exec:\n                command: [sleep, '5']", "has no sleep"),
    (DEPLOYMENT, "          args:\n            - serve", "          command: [sh, -c, groundling]", "has no sh"),
    (DEPLOYMENT, "            - --if-missing", "            - --missing", "--missing is no flag"),
    (DEPLOYMENT, "- name: models\n              m", "- name: model\n              m", "volume model does not"),
    (DEPLOYMENT, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "read-only root file system"),
    ("server/kustomization.yaml", "  - disruption-budget.yaml\n", "", "there is no PodDisruptionBudget"),
    ("server/kustomization.yaml", "  - autoscaler.yaml\n", "", "either the Deployment has replicas"),
    (SITE, "newTag: 0.1.0", "newTag: latest", "needs a registry and a fixed tag"),
    ("options/gpu/kustomization.yaml", "limits/nvidia.com~1gpu", "limits/nvidia.com~1cards", "has one card"),
    (JOB, '- "8"', '- "4"', "--shard is 4, but completions is 8"),
    (JOB, "- --project", "- --projects", "--projects is no flag"),
    (JOB, "containerName: annotate", "containerName: groundling", "podFailurePolicy names"),
    (JOB, "restartPolicy: Never", "restartPolicy: OnFailure", "must never be restarted"),
]


def make(folder: Path, work: Path) -> Iterator[tuple[str, Path, str]]:
    """Yields what is wrong, the copy, and a part of the problem that must be found."""
    for index, (file, text, replacement, expected) in enumerate(MISTAKES):
        copy = work / f"broken-{index}"
        shutil.copytree(folder, copy)
        original = (copy / file).read_text()
        if text not in original:
            raise SystemExit(f"broken_copies.py: {file} does not contain {text!r}")
        (copy / file).write_text(original.replace(text, replacement, 1))
        yield f"{file}: {replacement.strip() or 'without ' + text.strip()}", copy, expected
        shutil.rmtree(copy)
