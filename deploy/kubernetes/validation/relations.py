"""What documents must agree on with each other, with the settings of groundling, with its server and with its image."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# variables that are read by libraries
OTHER_VARIABLES = {"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE"}
# groundling's routes that need no credentials with basic authentication
PUBLIC_ROUTES = {"/ready", "/webhook"}
SECRET = "groundling"


@dataclass
class Facts:
    """What the repository says about groundling, and the keys of the Secret that a team makes."""

    settings: set[str]
    flags: set[str]
    commands: set[str]
    routes: set[str]
    stop_seconds: int
    secret_keys: set[str]
    # the variables of each image
    images: dict[str, dict[str, str]]

    @classmethod
    def read(cls, repository: Path, folder: Path) -> "Facts":
        code = "".join(path.read_text() for path in sorted((repository / "src/config").glob("*.rs")))
        commands = re.search(r"pub enum Command \{(.*?)\n\}", code, re.DOTALL)[1]
        serve = (repository / "src/commands/serve.rs").read_text()
        stop = re.search(r"SHUTDOWN_TIMEOUT: Duration = Duration::from_secs\((\d+)\)", serve)
        http = "".join(path.read_text() for path in sorted((repository / "src/http").glob("*.rs")))
        secret = (folder / "site/secret.env.example").read_text()
        dockerfiles = {"groundling": "Dockerfile", "groundling-cuda": "Dockerfile.cuda"}
        facts = cls(
            settings=set(re.findall(r'\benv = "([A-Z_]+)"', code)) | OTHER_VARIABLES,
            flags={"--" + name.replace("_", "-") for name in re.findall(r"\bpub (?:r#)?(\w+):", code)},
            commands={name.lower() for name in re.findall(r"^    (\w+)\(", commands, re.MULTILINE)},
            routes=set(re.findall(r'path = "(/[^"]*)"', http)),
            stop_seconds=int(stop[1]),
            secret_keys=set(re.findall(r"^([A-Z_]+)=$", secret, re.MULTILINE)),
            images={name: image_variables(repository / file) for name, file in dockerfiles.items()},
        )
        if len(facts.settings) < 30 or not facts.routes or "serve" not in facts.commands:
            raise SystemExit("src/ changed its form: adapt Facts.read")
        if unknown := facts.secret_keys - facts.settings:
            raise SystemExit(f"site/secret.env.example: no settings of groundling: {', '.join(sorted(unknown))}")
        return facts


def image_variables(dockerfile: Path) -> dict[str, str]:
    """The variables of the last stage. Its user must be a number, so that Kubernetes sees that it is not root."""
    stage = re.split(r"^FROM ", dockerfile.read_text().replace("\\\n", " "), flags=re.MULTILINE)[-1]
    if not re.search(r"^USER [1-9]\d*(:\d+)?$", stage, re.MULTILINE):
        raise SystemExit(f"{dockerfile.name}: USER must be a number above 0, because the pods have runAsNonRoot")
    lines = re.findall(r"^ENV (.*)", stage, re.MULTILINE)
    return dict(pair.split("=", 1) for line in lines for pair in line.split())


def kinds(documents: list[dict], kind: str) -> list[dict]:
    return [document for document in documents if document["kind"] == kind]


def selects(selector: dict | None, labels: dict) -> bool:
    """Whether matchLabels select these labels. An empty selector counts as a mistake."""
    wanted = (selector or {}).get("matchLabels") or {}
    return bool(wanted) and wanted.items() <= labels.items()


def containers(pod: dict) -> list[dict]:
    return pod.get("initContainers", []) + pod["containers"]


def environment(container: dict, config_maps: dict[str, dict], facts: Facts) -> dict[str, str]:
    """The variables of a container without those of the Secret."""
    found = dict(facts.images.get(container["image"].rsplit("/")[-1].partition(":")[0], {}))
    for source in container.get("envFrom", []):
        found |= config_maps.get(source.get("configMapRef", {}).get("name"), {})
    return found | {variable["name"]: variable.get("value") for variable in container.get("env", [])}


def problems(builds: dict[str, list[dict]], facts: Facts) -> list[str]:
    found = []
    job_labels = [job["spec"]["template"]["metadata"]["labels"] for job in kinds(builds["annotate"], "Job")]
    for name, documents in builds.items():
        own = []
        config_maps = {document["metadata"]["name"]: document["data"] for document in kinds(documents, "ConfigMap")}
        for document in kinds(documents, "Deployment") + kinds(documents, "Job"):
            own += pod_problems(document["spec"]["template"]["spec"], config_maps, facts)
        for deployment in kinds(documents, "Deployment"):
            own += deployment_problems(deployment, documents, config_maps, job_labels, facts)
        for job in kinds(documents, "Job"):
            own += job_problems(job)
        if kinds(documents, "Secret"):
            own.append("a Secret must not be among the manifests")
        found += [f"{name}: {problem}" for problem in own]
    return found


def pod_problems(pod: dict, config_maps: dict[str, dict], facts: Facts) -> list[str]:
    found = []
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    mounts = [mount for container in containers(pod) for mount in container.get("volumeMounts", [])]
    found += [f"the volume {mount['name']} does not exist" for mount in mounts if mount["name"] not in volumes]
    found += [f"the volume {name} is not used" for name in volumes - {mount["name"] for mount in mounts}]
    for container in containers(pod):
        own = variable_problems(container, config_maps, facts)
        own += argument_problems(container, facts)
        own += hardening_problems(pod, container)
        found += [f"{container['name']}: {problem}" for problem in own]
    return found


def variable_problems(container: dict, config_maps: dict[str, dict], facts: Facts) -> list[str]:
    found = []
    sources = container.get("envFrom", [])
    if [source["secretRef"]["name"] for source in sources if "secretRef" in source] != [SECRET]:
        found.append(f"it does not get the Secret {SECRET}")
    for name in [source["configMapRef"]["name"] for source in sources if "configMapRef" in source]:
        if name not in config_maps:
            found.append(f"the ConfigMap {name} does not exist")
        if secret := facts.secret_keys & config_maps.get(name, {}).keys():
            found.append(f"{', '.join(sorted(secret))} must be in the Secret")
    variables = environment(container, config_maps, facts)
    own = {variable["name"] for variable in container.get("env", [])}.union(*config_maps.values())
    found += [f"{variable} is no setting of groundling" for variable in sorted(own - facts.settings)]
    written = {name: variables.get(name, "") for name in ["MODEL_DIR", "HF_HOME"]}
    written["CACHE_DIR"] = variables.get("CACHE_DIR", f"{written['MODEL_DIR']}/cache")
    mounts = [mount["mountPath"] for mount in container.get("volumeMounts", []) if not mount.get("readOnly")]
    for variable, path in written.items():
        if not any(PurePosixPath(path).is_relative_to(mount) for mount in mounts):
            found.append(f"{variable} is {path}, which is on no writable volume")
    return found


def argument_problems(container: dict, facts: Facts) -> list[str]:
    arguments, found = container.get("args", []), []
    hooks = [container.get(probe, {}) for probe in ["startupProbe", "readinessProbe", "livenessProbe"]]
    hooks += container.get("lifecycle", {}).values()
    programs = [hook["exec"]["command"][0] for hook in hooks if "exec" in hook] + container.get("command", [])[:1]
    found += [f"the image has no {program}" for program in programs if program != "/usr/local/bin/groundling"]
    if arguments and arguments[0] not in facts.commands:
        found.append(f"{arguments[0]} is no command of groundling")
    flags = [argument.split("=")[0] for argument in arguments if argument.startswith("--")]
    found += [f"{flag} is no flag of groundling" for flag in flags if flag not in facts.flags]
    image = container["image"]
    tag = image.rsplit("/")[-1].partition(":")[2]
    if "/" not in image or tag in ("", "latest"):
        found.append(f"the image {image} needs a registry and a fixed tag")
    return found


def hardening_problems(pod: dict, container: dict) -> list[str]:
    """What the Pod Security Standard `restricted` asks for, and more."""
    of_pod, own = pod.get("securityContext", {}), container.get("securityContext", {})
    limits, requests = (container.get("resources", {}).get(key, {}) for key in ("limits", "requests"))
    conditions = {
        "does not run as root": of_pod.get("runAsNonRoot") is True and of_pod.get("runAsUser") != 0,
        "has the seccomp profile RuntimeDefault": of_pod.get("seccompProfile") == {"type": "RuntimeDefault"},
        "has a read-only root file system": own.get("readOnlyRootFilesystem") is True,
        "cannot gain privileges": own.get("allowPrivilegeEscalation") is False,
        "has no capabilities": own.get("capabilities") == {"drop": ["ALL"]},
        "gets no service account token": pod.get("automountServiceAccountToken") is False,
        "gets no variables of other Services": pod.get("enableServiceLinks") is False,
        "has equal CPU request and limit, a whole number": str(limits.get("cpu", "")).isdigit()
        and limits["cpu"] == requests.get("cpu"),
        "has equal memory request and limit": "memory" in limits and limits["memory"] == requests.get("memory"),
        "has one card with the image for GPUs, else none": limits.get("nvidia.com/gpu", 0)
        == int("/groundling-cuda:" in container["image"]),
    }
    return [f"not true: it {condition}" for condition, holds in conditions.items() if not holds]


def deployment_problems(
    deployment: dict, documents: list[dict], config_maps: dict[str, dict], job_labels: list[dict], facts: Facts
) -> list[str]:
    found = []
    name, spec = deployment["metadata"]["name"], deployment["spec"]
    labels, pod = spec["template"]["metadata"]["labels"], spec["template"]["spec"]
    services, budgets = kinds(documents, "Service"), kinds(documents, "PodDisruptionBudget")
    selectors = [("the Deployment", spec["selector"])]
    selectors += [("a topology spread constraint", c.get("labelSelector")) for c in pod["topologySpreadConstraints"]]
    selectors += [("the Service", {"matchLabels": service["spec"]["selector"]}) for service in services]
    selectors += [("the PodDisruptionBudget", budget["spec"]["selector"]) for budget in budgets]
    for what, selector in selectors:
        if not selects(selector, labels):
            found.append(f"{what} does not select the server's pods")
        if any(selects(selector, job) for job in job_labels):
            found.append(f"{what} also selects pods of the job")
    server = pod["containers"][0]
    ports = {key: port["containerPort"] for port in server["ports"] for key in (port["name"], port["containerPort"])}
    targets = [port.get("targetPort", port["port"]) for service in services for port in service["spec"]["ports"]]
    found += [f"the Service's target port {target} is no port of the pod" for target in targets if target not in ports]
    variables = environment(server, config_maps, facts)
    if str(variables.get("PORT")) not in {str(port) for port in ports.values()}:
        found.append(f"PORT is {variables.get('PORT')}, which is no port of the pod")
    if variables.get("BIND_ADDRESS") != "0.0.0.0":
        found.append(f"BIND_ADDRESS is {variables.get('BIND_ADDRESS')}, to which no other pod can connect")
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"]:
        request = server[probe]["httpGet"]
        if request["path"] not in facts.routes:
            found.append(f"{probe}: {request['path']} is no route of the server")
        elif request["path"] not in PUBLIC_ROUTES:
            found.append(f"{probe}: {request['path']} needs credentials with basic authentication")
        if request["port"] not in ports:
            found.append(f"{probe}: {request['port']} is no port of the pod")
    least = server["lifecycle"]["preStop"].get("sleep", {}).get("seconds", 0) + facts.stop_seconds
    if pod.get("terminationGracePeriodSeconds", 30) <= least:
        found.append(f"terminationGracePeriodSeconds must be above {least}: preStop and the server's own stop")
    found += network_problems(kinds(documents, "NetworkPolicy"), [labels, *job_labels], set(ports.values()))
    scalers = kinds(documents, "HorizontalPodAutoscaler")
    for scaler in scalers:
        target = scaler["spec"]["scaleTargetRef"]
        if (target.get("apiVersion"), target["kind"], target["name"]) != ("apps/v1", "Deployment", name):
            found.append("the HorizontalPodAutoscaler does not target the Deployment")
    if bool(scalers) == ("replicas" in spec):
        found.append("either the Deployment has replicas, or a HorizontalPodAutoscaler sets them")
    for kind in ["Service", "PodDisruptionBudget", "NetworkPolicy"]:
        if not kinds(documents, kind):
            found.append(f"there is no {kind}")
    return found


def network_problems(policies: list[dict], pods: list[dict], ports: set[int]) -> list[str]:
    found = []
    for policy in policies:
        name, spec = policy["metadata"]["name"], policy["spec"]
        if not all(selects(spec["podSelector"], labels) for labels in pods):
            found.append(f"the NetworkPolicy {name} does not select the pods of the server and of the job")
        for rule in spec.get("ingress", []):
            wrong = [port["port"] for port in rule.get("ports", []) if port["port"] not in ports]
            found += [f"the NetworkPolicy {name} opens {port}, which is no port of the pod" for port in wrong]
            if not rule.get("ports") or not rule.get("from"):
                found.append(f"the NetworkPolicy {name} is open for all ports or sources")
    return found


def job_problems(job: dict) -> list[str]:
    found = []
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    arguments = pod["containers"][0]["args"]
    # the count alone: the index is JOB_COMPLETION_INDEX
    shards = arguments[arguments.index("--shard") + 1] if "--shard" in arguments else None
    if shards != str(spec.get("completions")):
        found.append(f"--shard is {shards}, but completions is {spec.get('completions')}")
    if spec.get("completionMode") != "Indexed" or pod["restartPolicy"] != "Never":
        found.append("the job must be Indexed and its pods must never be restarted")
    names = {container["name"] for container in containers(pod)}
    for rule in spec["podFailurePolicy"]["rules"]:
        name = rule.get("onExitCodes", {}).get("containerName")
        if name and name not in names:
            found.append(f"podFailurePolicy names the container {name}, which does not exist")
    return found
