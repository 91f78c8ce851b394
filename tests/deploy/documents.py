"""Reads a manifest, checks its documents against the schemas of one Kubernetes, and prints them as JSON."""

import json
import sys

import kubernetes_validate
import yaml

# Of the Prometheus operator: Kubernetes has no schema of them.
FOREIGN = ("monitoring.coreos.com/v1",)


def main():
    (version,) = sys.argv[1:]
    documents = [document for document in yaml.safe_load_all(sys.stdin) if document]
    for document in documents:
        if document["apiVersion"] in FOREIGN:
            continue
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            name = "{kind} {metadata[name]}".format(**document)
            sys.exit(f"{name}, Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}")
    json.dump(documents, sys.stdout)


main()
