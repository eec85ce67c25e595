"""Label Studio and groundling behind a proxy: under path prefixes, with TLS and a certificate authority of their own."""

import os
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Tuple
from urllib.parse import quote

import pictures
from api import LABELS, PROMPT, SHAPES, Api, prompt_context
from api_scenarios import add_local_files, predictions_of
from regions import drawn, pairs, summary
from studio import STUDIO_SECONDS, Process, Skipped, World, ensure, free_port

# Debian has nginx in a folder that is not in the PATH of every user
NGINX = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
events {{}}
http {{
  access_log {folder}/access.log;
  client_max_body_size 64m;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxied;
  fastcgi_temp_path {folder}/unused;
  scgi_temp_path {folder}/unused;
  uwsgi_temp_path {folder}/unused;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {folder}/server.pem;
    ssl_certificate_key {folder}/server.key;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-Proto https;
    location /studio/ {{ proxy_pass {studio}/; }}
    location /groundling/ {{ proxy_pass {groundling}/; }}
  }}
}}
"""


NOT_TRUSTED = "its certificate authority is not trusted: add it to the file in SSL_CERT_FILE"


def create_certificates(folder: Path) -> Tuple[Path, Path]:
    """Creates a certificate for 127.0.0.1. Returns the certificate of its authority, and that of another authority."""

    def openssl(*arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True)
        ensure(done.returncode == 0, f"openssl {' '.join(arguments)}: {done.stderr[-500:]}")

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("authority", "other"):
        subject = ("-subj", f"/CN=groundling test {name}")
        openssl("req", "-x509", *key, *subject, "-days", "2", "-keyout", f"{name}.key", "-out", f"{name}.pem")
    subject = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    openssl("req", *key, *subject, "-keyout", "server.key", "-out", "server.csr")
    signed = ("-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial", "-copy_extensions", "copy")
    openssl("x509", "-req", "-in", "server.csr", *signed, "-days", "2", "-out", "server.pem")
    return folder / "authority.pem", folder / "other.pem"


def copy_data(source: Path, folder: Path) -> None:
    """Copies the database of a Label Studio that runs, so that another one starts with its user and tokens at once."""
    folder.mkdir()
    shutil.copy(source / ".env", folder)
    name = "label_studio.sqlite3"
    with sqlite3.connect(source / name) as database, sqlite3.connect(folder / name) as copy:
        database.backup(copy)


def proxy(world: World) -> None:
    """Behind a proxy with TLS and path prefixes: images, prompts, batches, `annotate` and `doctor` work."""
    if NGINX is None:
        raise Skipped("nginx is not installed (Debian: apt-get install nginx-light)")
    folder = world.out / "proxy"
    folder.mkdir()
    authority, other = create_certificates(folder)
    copy_data(world.out / "data", folder / "data")
    port, studio_port = free_port(), free_port()
    base = f"https://127.0.0.1:{port}"
    trust = {"REQUESTS_CA_BUNDLE": str(authority)}
    studio = world.spawn_label_studio("proxied-studio", studio_port, folder / "data", f"{base}/studio", **trust)
    settings = {"LABEL_STUDIO_HOST": f"{base}/studio", "ALLOWED_IMAGE_HOSTS": ""}
    groundling = world.start_groundling("proxied", world.api.pat, SSL_CERT_FILE=str(authority), **settings)
    token = world.secrets["legacy token"]
    untrusting = world.start_groundling("untrusting", token, SSL_CERT_FILE=str(other), **settings)
    config = folder / "nginx.conf"
    addresses = {"studio": f"http://127.0.0.1:{studio_port}", "groundling": groundling.url}
    config.write_text(CONFIG.format(folder=folder, port=port, **addresses), encoding="utf-8")
    nginx = world.spawn("nginx", [NGINX, "-c", config, "-p", folder, "-e", "stderr"], port, {})
    studio.wait_for_health(STUDIO_SECONDS)
    try:
        api = Api(f"{base}/studio", pat=world.api.pat, authority=authority)
        project = check_proxied(world, api, groundling, base)
        check_commands(world, api, project, groundling.environment, untrusting.environment)
        check_untrusted(api, project, untrusting)
    finally:
        for process in (untrusting, groundling, nginx, studio):
            process.stop()


def check_proxied(world: World, api: Api, groundling: Process, base: str) -> int:
    """Checks requests through the proxy, for every form of address that images have under a prefix. Returns the project."""
    project = api.project("behind a proxy")
    api.upload(project, SHAPES)
    local = pictures.varied(world.out / "pictures/proxy", 4, first=50)
    add_local_files(api, project, world.files, "proxied pictures", local)
    api.import_urls(project, ["/studio/data/local-files/?d=" + quote(f"proxied pictures/{local[0].name}")])
    tasks = {task["id"]: task["data"]["image"] for task in api.get(f"/api/tasks?project={project}")["tasks"]}
    forms = sorted(image.split("data/")[0] for image in tasks.values())
    expected = ["/", "/", "/studio/", "/studio/", f"{base}/studio/", f"{base}/studio/"]
    ensure(forms == expected, f"addresses of the images: {sorted(tasks.values())}")

    direct = api.connect(project, groundling)["id"]
    for task, image in tasks.items():
        found = api.suggest(direct, task, prompt_context(PROMPT))
        ensure(summary(found) == pairs(), f"behind a proxy, {image}: {summary(found)}")
    # Label Studio reaches groundling through the proxy too
    proxied = api.connect(project, groundling, url=f"{base}/groundling/")["id"]
    for found in (api.suggest(proxied, min(tasks), prompt_context(LABELS[0])), drawn(api.test_request(proxied))):
        ensure(summary(found) == pairs(LABELS[:1]), f"groundling behind a proxy: {summary(found)}")
    return project


def check_commands(world: World, api: Api, project: int, environment: dict, untrusting: dict) -> None:
    """Checks `doctor` and `annotate` through the proxy, and what they say with settings that do not trust it."""
    for command in (["doctor", "--project", project], ["annotate", "--project", project, "--prompt", "blue star"]):
        name = f"proxy-{command[0]}"
        code, output = world.run_groundling(name, command, environment)
        ensure(code == 0, f"{command[0]} through a proxy: exit code {code}: {output[-1500:]}")
        code, output = world.run_groundling(f"{name}-untrusting", command, untrusting)
        ensure(code == 1 and NOT_TRUSTED in output, f"{command[0]} with another authority: {code}: {output[-1500:]}")
    counts = [len(found) for found in predictions_of(api, project).values()]
    ensure(counts == [1] * 6, f"predictions after annotate through a proxy: {counts}")


def check_untrusted(api: Api, project: int, untrusting: Process) -> None:
    """Checks that a prompt fails with a clear error if groundling does not trust Label Studio's certificate."""
    ml = api.connect(project, untrusting)["id"]
    answer = api.interactive(ml, min(api.tasks(project)), prompt_context("blue heart"))
    text = str(answer) + untrusting.log_text()
    ensure("errors" in answer and NOT_TRUSTED in text, f"an image from a host that is not trusted: {answer}")
