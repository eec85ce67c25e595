"""Scenarios without the page: batches, tokens, commands and basic auth."""

import json
import shutil
from pathlib import Path
from typing import Dict, List
from urllib.parse import quote

import pictures
from api import CONFIG, LABELS, PROMPT, SHAPES, Api, prompt_context
from regions import check_prediction, check_regions, drawn, mask_of, pairs, summary
from studio import World, ensure, free_port


def batch(world: World) -> None:
    """Retrieve predictions gives every task one prediction: uploads, local files, web addresses and data URIs."""
    api = world.api
    project = api.project("batch")
    paths = pictures.varied(world.out / "pictures/batch", 30)
    api.upload(project, *paths[:10])
    add_local_files(api, project, world.files, "batch pictures", paths[10:20])
    web = world.out / "web"
    web.mkdir(exist_ok=True)
    base = world.serve_images(web)
    urls = [f"{base}/{shutil.copy(path, web / path.name.replace(' ', '-')).name}" for path in paths[20:25]]
    api.import_urls(project, urls + [pictures.data_uri(path) for path in paths[25:]])
    tasks = api.get(f"/api/tasks?project={project}&page_size=200")["tasks"]
    # Label Studio syncs local files to addresses with its own host
    synced = f"{world.studio.url}/data/local-files/?d="
    expected = {"/data/upload/": 10, "/data/local-files/?d=": 5, synced: 5, f"{base}/": 5, "data:": 5}
    found = {form: sum(task["data"]["image"].startswith(form) for task in tasks) for form in expected}
    ensure(found == expected, f"number of tasks by form of address: {found}, expected {expected}")

    version = api.connect(project, world.legacy)["model_version"]
    api.retrieve_predictions(project)
    first = predictions_of(api, project)
    images = {task["id"]: task["data"]["image"][:60] for task in tasks}
    missing = [images[task] for task, found in first.items() if not found]
    ensure(not missing, f"{len(missing)} of {len(tasks)} tasks have no prediction: {missing}; see {world.legacy.log}")
    for task, found in first.items():
        what = f"batch, task {task} ({images[task]})"
        ensure(len(found) == 1, f"{what}: {len(found)} predictions")
        ensure(found[0]["model_version"] == version, f"{what}: version {found[0]['model_version']}, not {version}")
        regions = found[0]["result"]
        ensure(len(regions) >= 2, f"{what}: {summary(regions)}")
        check_prediction(what, found[0], CONFIG)
        for region in regions:
            if region["type"] == "brushlabels":
                ensure(mask_of(region).any(), f"{what}: an empty mask")

    api.retrieve_predictions(project)
    ensure(ids_of(predictions_of(api, project)) == ids_of(first), "a second retrieval changed the predictions")


def add_local_files(api: Api, project: int, root: Path, name: str, paths: list) -> None:
    """Adds tasks with files in a new folder below Label Studio's document root: half are synced from a storage, half are
    imported by their URL."""
    folder = root / name
    folder.mkdir(parents=True)
    half = len(paths) // 2
    for path in paths[:half]:
        shutil.copy(path, folder)
    storage = {"project": project, "title": "local", "path": str(folder), "regex_filter": r".*\.png"}
    created = api.post("/api/storages/localfiles", storage | {"use_blob_urls": True})
    synced = api.post(f"/api/storages/localfiles/{created['id']}/sync", {})
    ensure(synced["last_sync_count"] == half, f"local files: {synced}")
    names = [Path(shutil.copy(path, folder)).relative_to(root) for path in paths[half:]]
    api.import_urls(project, [f"/data/local-files/?d={quote(str(name))}" for name in names])


def predictions_of(api: Api, project: int) -> Dict[int, List[dict]]:
    """The stored predictions of each task of a project."""
    found: Dict[int, List[dict]] = {task: [] for task in api.tasks(project)}
    for prediction in api.get(f"/api/predictions?task__project={project}"):
        found.setdefault(prediction["task"], []).append(prediction)
    return found


def ids_of(found: Dict[int, List[dict]]) -> Dict[int, List[int]]:
    """The ids of the predictions of each task."""
    return {task: sorted(prediction["id"] for prediction in predictions) for task, predictions in found.items()}


def tokens(world: World) -> None:
    """A personal access token works even if legacy tokens are disabled; then the error of a legacy token names the setting."""
    api = world.api
    project = api.project("tokens")
    # another task for each request, so that no response comes from a cache
    tasks = api.upload(project, *[SHAPES] * 5)
    pat, legacy = (api.connect(project, backend)["id"] for backend in (world.pat, world.legacy))
    prompt = prompt_context(PROMPT)

    def check(what: str, ml: int, task: int) -> None:
        check_regions(what, api.suggest(ml, task, prompt))

    check("legacy token", legacy, tasks[0])
    check("personal access token", pat, tasks[1])
    api.allow_tokens(legacy=False)
    try:
        check("personal access token, legacy tokens disabled", pat, tasks[2])
        log_length = len(world.legacy.log_text())
        answer = api.interactive(legacy, tasks[3], prompt)
        ensure("errors" in answer, "the image was fetched although legacy tokens are disabled")
        message = world.legacy.log_text()[log_length:] + str(answer["errors"])
        ensure(
            "LABEL_STUDIO_ACCESS_TOKEN" in message, f"the error does not name the token's setting: {message[-1500:]}"
        )
        ensure(
            "legacy" in message.lower(), f"the error does not say that legacy tokens are disabled: {message[-1500:]}"
        )
    finally:
        api.allow_tokens(legacy=True)
    check("legacy token, enabled again", legacy, tasks[4])


def annotate(world: World) -> None:
    """`groundling annotate` gives every task of a project one prediction, even if it runs twice."""
    api = world.api
    project = api.project("annotate")
    tasks = api.upload(project, *pictures.varied(world.out / "pictures/annotate", 12, first=5))
    environment = world.groundling_environment("annotate", world.secrets["legacy token"], free_port())
    command = ["annotate", "--project", project, "--prompt", "red circle"]

    code, output = world.run_groundling("annotate-1", command, environment)
    ensure(code == 0, f"annotate ended with exit code {code}: {output[-1500:]}")
    first = predictions_of(api, project)
    counts = [len(first[task]) for task in tasks]
    ensure(counts == [1] * 12, f"predictions of the 12 tasks: {counts}: {output[-1500:]}")
    for task in tasks:
        prediction = first[task][0]
        what = f"annotate, task {task}"
        ensure(prediction["model_version"], f"{what}: no model version")
        result = drawn(prediction["result"])
        ensure(summary(result) == pairs(LABELS[:1]), f"{what}: {summary(result)}")
        check_prediction(what, {"result": result, "score": prediction["score"]}, CONFIG)

    code, output = world.run_groundling("annotate-2", command, environment)
    ensure(code == 0, f"the second annotate ended with exit code {code}: {output[-1500:]}")
    ensure(
        ids_of(predictions_of(api, project)) == ids_of(first),
        f"the second annotate changed predictions: {output[-1500:]}",
    )

    check_replace(world, project, command, environment)

    project = api.project("annotate, only unlabeled")
    tasks = api.upload(project, SHAPES, SHAPES, SHAPES)
    prompt = prompt_context("red circle")["result"]
    api.post(f"/api/tasks/{tasks[1]}/annotations", {"result": prompt, "was_cancelled": False})
    command[2] = project
    code, output = world.run_groundling("annotate-3", [*command, "--only-unlabeled"], environment)
    ensure(code == 0, f"annotate --only-unlabeled ended with exit code {code}: {output[-1500:]}")
    found = predictions_of(api, project)
    counts = [len(found[task]) for task in tasks]
    ensure(counts == [1, 0, 1], f"--only-unlabeled: predictions of three tasks, the second one annotated: {counts}")
    ensure(len(api.annotations(tasks[1])) == 1, "annotate changed an annotation")


OLDER, OTHERS = "groundling 0.0.9 demo+demo box=0.3", ("groundling", "imported by Anna")


def check_replace(world: World, project: int, command: list, environment: dict) -> None:
    """`annotate --replace` deletes the predictions of older versions of groundling, after a question, and no others."""
    api = world.api
    kept, *rest = tasks = api.tasks(project)
    for task in tasks:
        for version in (OLDER, *OTHERS):
            api.post("/api/predictions/", {"task": task, "model_version": version, "score": 0.5, "result": []})
    [older] = [p["id"] for p in api.predictions(kept) if p["model_version"] == OLDER]
    body = {"result": prompt_context("red circle")["result"], "was_cancelled": False, "parent_prediction": older}
    api.post(f"/api/tasks/{kept}/annotations", body)
    api.call("PATCH", f"/api/projects/{project}/", json={"model_version": OLDER})
    before = ids_of(predictions_of(api, project))
    replace = [*command, "--replace"]

    def check_unchanged(what: str, code: int, output: str, expected: str) -> None:
        ensure(code == 1 and expected in output, f"--replace {what}: exit code {code}: {output[-1500:]}")
        ensure(ids_of(predictions_of(api, project)) == before, f"--replace {what} changed predictions")

    code, output = world.run_groundling("annotate-no-terminal", replace, environment)
    check_unchanged("without a terminal", code, output, "--yes")
    code, output = world.run_groundling("annotate-no", replace, environment, answer="n")
    check_unchanged("that was answered with n", code, output, f"12 {OLDER}")
    ensure("imported" not in output, f"--replace asks about predictions of others: {output[-1500:]}")

    code, output = world.run_groundling("annotate-yes", [*replace, "--only-unlabeled"], environment, answer="y")
    ensure(code == 0 and ", 11 older ones deleted" in output, f"--replace --only-unlabeled: {code}: {output[-1500:]}")
    ensure("Settings > Annotation" in output, f"--replace does not name the project's selected version: {output[-1500:]}")
    command = [*command[:-1], "blue star", "--replace", "--yes"]
    code, output = world.run_groundling("annotate-replace", command, environment)
    ensure(code == 0 and ", 13 older ones deleted" in output, f"--replace --yes: {code}: {output[-1500:]}")
    for task, found in predictions_of(api, project).items():
        versions = sorted(prediction["model_version"] for prediction in found)
        others = [version for version in versions if version in OTHERS]
        ensure(len(versions) == 3 and others == sorted(OTHERS), f"--replace: task {task} has {versions}")
        ensure(any('"blue star' in version for version in versions), f"--replace: task {task} has {versions}")
    [annotation] = api.annotations(kept)
    ensure(annotation["result"] and annotation["parent_prediction"] is None, f"--replace: the annotation is {annotation}")
    # what groundling relies on
    path = f"/api/predictions/{api.predictions(rest[0])[0]['id']}/"
    statuses = [api.send("DELETE", path).status_code for _ in range(2)]
    ensure(statuses == [204, 404], f"DELETE {path} twice: {statuses}")


def doctor(world: World) -> None:
    """`groundling doctor` finds no problem in a working setup, and names a wrong setting."""
    api = world.api
    project = api.project("doctor")
    api.upload(project, SHAPES)
    api.connect(project, world.legacy)
    good = world.legacy.environment
    command = ["doctor", "--project", project]
    wrong_token, no_server = "f" * 40, f"http://127.0.0.1:{free_port()}"
    cases = [
        ("good", good, 0, ""),
        ("good-pat", good | {"LABEL_STUDIO_ACCESS_TOKEN": api.pat}, 0, ""),
        ("wrong-token", good | {"LABEL_STUDIO_ACCESS_TOKEN": wrong_token}, 1, "LABEL_STUDIO_ACCESS_TOKEN"),
        ("wrong-port", good | {"LABEL_STUDIO_HOST": no_server}, 1, "LABEL_STUDIO_HOST"),
    ]
    for name, environment, expected, named in cases:
        code, output = world.run_groundling(f"doctor-{name}", command, environment)
        ensure(code == expected, f"doctor, {name}: exit code {code}, not {expected}: {output[-1500:]}")
        ensure(named in output, f"doctor, {name}: does not name {named}: {output[-1500:]}")
        ensure(wrong_token not in output, f"doctor, {name}: the output shows the token")


def basic_auth(world: World) -> None:
    """Label Studio can connect a backend with basic auth, and only with the right credentials."""
    api = world.api
    password = world.secrets["basic auth password"] = "pa ss:wörd"
    token = world.secrets["legacy token"]
    backend = world.start_groundling("basic-auth", token, BASIC_AUTH_USER="user", BASIC_AUTH_PASS=password)
    project = api.project("basic auth")
    [task] = api.upload(project, SHAPES)
    credentials = {"auth_method": "BASIC_AUTH", "basic_auth_user": "user", "basic_auth_pass": password}
    wrong = [{"auth_method": "NONE"}, credentials | {"basic_auth_pass": "password"}]
    for attempt in wrong:
        answer = api.send("POST", "/api/ml", json=api.connection(project, backend) | attempt)
        ensure(answer.status_code == 400, f"wrong credentials: {answer.status_code} {answer.text[:500]}")
        ensure("authentication" in answer.text.lower(), f"wrong credentials: {answer.text[:500]}")
    connected = api.connect(project, backend, **credentials)
    check_regions("basic auth, test request", drawn(api.test_request(connected["id"])))
    check_regions("basic auth", api.suggest(connected["id"], task, prompt_context(PROMPT)))
    backend.stop()


def connect_command(world: World) -> None:
    """`groundling connect` makes a project that works, can be repeated, and connects an existing project."""
    api = world.api
    environment = world.legacy.environment | {"GROUNDLING_URL": world.legacy.url}
    command = ["connect", "--title", "connect command", "--demo"]
    expected = (
        ["was created", "24 images were uploaded", "is connected"],
        ["exists", "no image was uploaded", "was connected already"],
    )
    for number, lines in enumerate(expected):
        code, output = world.run_groundling(f"connect-{number}", command, environment)
        ensure(code == 0, f"connect ended with exit code {code}: {output[-1500:]}")
        for line in [*lines, "a prediction for task"]:
            ensure(line in output, f"connect, run {number}: {line!r} is not in {output[-1500:]}")
    [project] = [p["id"] for p in api.get("/api/projects/?page_size=100")["results"] if p["title"] == "connect command"]
    backends = api.get(f"/api/ml?project={project}")
    ensure(len(backends) == 1 and backends[0]["is_interactive"], f"backends: {backends}")
    tasks = api.tasks(project)
    ensure(len(tasks) == 24, f"{len(tasks)} tasks")
    found = [len(api.suggest(backends[0]["id"], task, prompt_context("star. circle. square"))) for task in tasks[:6]]
    ensure(sum(found) > 1, f"regions of a prompt on six pictures: {found}")

    # an existing project keeps its config and its backend's title
    project = api.project("connect an existing project")
    connected = api.connect(project, world.legacy, is_interactive=False, title="ours")
    [task] = api.upload(project, SHAPES)
    config = api.get(f"/api/projects/{project}/")["label_config"]
    code, output = world.run_groundling("connect-existing", ["connect", "--project", project], environment)
    ensure(code == 0, f"connect --project ended with exit code {code}: {output[-1500:]}")
    [backend] = api.get(f"/api/ml?project={project}")
    ensure(backend["id"] == connected["id"] and backend["title"] == "ours", f"the backend was replaced: {backend}")
    ensure(backend["is_interactive"], "interactive preannotations are still off")
    ensure(api.get(f"/api/projects/{project}/")["label_config"] == config, "the labeling config was changed")
    check_regions("connected project", api.suggest(backend["id"], task, prompt_context(PROMPT)))

    # what is wrong is named
    wrong = environment | {"GROUNDLING_URL": f"http://127.0.0.1:{free_port()}"}
    code, output = world.run_groundling("connect-wrong", ["connect", "--project", project, "--wait", "0"], wrong)
    ensure(code == 1, f"connect with a wrong address ended with exit code {code}: {output[-1500:]}")
    ensure("health check failed" in output and "--url" in output, f"a wrong address: {output[-1500:]}")


def evaluate(world: World) -> None:
    """`groundling evaluate` compares with annotations as Label Studio stores them, and writes thresholds into the project."""
    api = world.api
    project = api.project("evaluate")
    backend = api.connect(project, world.legacy)
    tasks = api.upload(project, SHAPES, SHAPES)
    for task in tasks:
        regions = api.suggest(backend["id"], task, prompt_context(PROMPT))
        truth = [region for region in regions if region["type"] in ("rectanglelabels", "brushlabels")]
        ensure(len(truth) == 4, f"two boxes and two masks are expected: {summary(truth)}")
        if task == tasks[0]:
            # a circle that nobody can find
            missed = next(region for region in truth if region["type"] == "rectanglelabels")
            value = missed["value"] | {"x": 1, "y": 1, "width": 8, "height": 8, "rectanglelabels": ["Red Circle"]}
            truth.append(missed | {"id": "missed", "value": value})
        api.post(f"/api/tasks/{task}/annotations/", {"result": truth})
    environment = world.legacy.environment
    report = world.out / "evaluate.html"
    command = ["evaluate", "--project", project, "--json", "--report", report]
    code, output = world.run_groundling("evaluate", command, environment)
    ensure(code == 0, f"evaluate ended with exit code {code}: {output[-1500:]}")
    found = json.loads(output[output.index("{\n") : output.rindex("\n}") + 2])
    labels = {label["label"]: label for label in found["labels"]}
    ensure(found["mask"]["ap"] > 0.999, f"the masks are those of the predictions: {found['mask']}")
    ensure(labels["Blue Star"]["f1"] == 1, f"the stars are those of the predictions: {labels['Blue Star']}")
    ensure(abs(labels["Red Circle"]["recall"] - 2 / 3) < 1e-9, f"one of three circles is missed: {labels['Red Circle']}")
    ensure("Red Circle (missed" in report.read_text(), "the report does not show the missed circle")

    code, output = world.run_groundling("evaluate-labels", [*command[:3], "--apply", "labels"], environment)
    ensure(code == 0, f"--apply labels ended with exit code {code}: {output[-1500:]}")
    config = api.get(f"/api/projects/{project}/")["label_config"]
    ensure(config.count("score_threshold=") == 4, f"the labels have no thresholds: {config}")
    code, output = world.run_groundling("evaluate-params", [*command[:3], "--apply", "extra-params"], environment)
    ensure(code == 0, f"--apply extra-params ended with exit code {code}: {output[-1500:]}")
    params = api.get(f"/api/ml/{backend['id']}")["extra_params"]
    params = json.loads(params) if isinstance(params, str) else params
    ensure(0 < params["box_threshold"] < 1, f"extra params: {params}")
