"""Converts the output of cargo metadata (stdin) to CycloneDX 1.5 (stdout); called by .ci/sbom.

Development dependencies are left out. Build dependencies and dependencies of other platforms are included, and those of
optional features if cargo metadata was called with them (`.ci/sbom --features cuda`). The output depends only on the
input: it has no time and no random serial number.
"""

import json
import re
import sys
import tomllib
import uuid


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def licence(expression):
    # "A/B" is the old form of "A OR B", which CycloneDX does not allow
    return re.sub(r"\s*/\s*", " OR ", expression)


def component(package, checksums, root):
    is_root = package["id"] == root
    name, version = package["name"], package["version"]
    entry = {
        "type": "application" if is_root else "library",
        "bom-ref": purl(package),
        "name": name,
        "version": version,
        "purl": purl(package),
    }
    if package["description"]:
        entry["description"] = " ".join(package["description"].split())
    if package["license"]:
        entry["licenses"] = [{"expression": licence(package["license"])}]
    checksum = checksums.get((name, version))
    if checksum:
        entry["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if package["repository"]:
        entry["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return entry


def edges(node):
    """The dependencies of a package, without its development dependencies."""
    kinds = lambda dep: {kind["kind"] for kind in dep["dep_kinds"]}
    return [dep["pkg"] for dep in node["deps"] if kinds(dep) - {"dev"}]


def reachable(root, graph):
    seen, todo = {root}, [root]
    while todo:
        for dependency in graph[todo.pop()]:
            if dependency not in seen:
                seen.add(dependency)
                todo.append(dependency)
    return seen


def bill(metadata, lock):
    packages = {package["id"]: package for package in metadata["packages"]}
    graph = {node["id"]: edges(node) for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    checksums = {(p["name"], p["version"]): p["checksum"] for p in lock["package"] if "checksum" in p}
    members = reachable(root, graph)
    ordered = sorted(members, key=lambda id: (packages[id]["name"], packages[id]["version"]))
    components = {id: component(packages[id], checksums, root) for id in ordered}
    dependencies = [
        {"ref": purl(packages[id]), "dependsOn": sorted({purl(packages[to]) for to in graph[id]})} for id in ordered
    ]
    contents = json.dumps([list(components.values()), dependencies], sort_keys=True)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, contents)}",
        "version": 1,
        "metadata": {"component": components[root]},
        "components": [components[id] for id in ordered if id != root],
        "dependencies": dependencies,
    }


def check(bom, metadata):
    """Checks what CycloneDX 1.5 and its readers require; raises if something is missing."""
    everything = [bom["metadata"]["component"], *bom["components"]]
    references = [entry["bom-ref"] for entry in everything]
    assert len(references) == len(set(references)), "two components have the same reference"
    assert len(everything) > 100, f"only {len(everything)} components"
    local = {purl(package) for package in metadata["packages"] if package["source"] is None}
    for entry in everything:
        reference = entry["bom-ref"]
        assert all(entry[key] for key in ("type", "name", "version", "purl", "licenses")), f"{reference} lacks a field"
        if reference not in local:
            [digest] = entry["hashes"]
            assert re.fullmatch("[0-9a-f]{64}", digest["content"]), f"{reference} has no checksum"
    assert sorted(entry["ref"] for entry in bom["dependencies"]) == sorted(references)
    for entry in bom["dependencies"]:
        unknown = set(entry["dependsOn"]) - set(references)
        assert not unknown, f"{entry['ref']} depends on {unknown}, which is not a component"


def main():
    metadata = json.load(sys.stdin)
    with open("Cargo.lock", "rb") as file:
        lock = tomllib.load(file)
    bom = bill(metadata, lock)
    check(bom, metadata)
    json.dump(bom, sys.stdout, indent=1)
    print()


main()
