"""The AWS SDK for Python as a pod's application uses it: the default chain, nothing configured in code.

fetch.py [--fetches N] [BUCKET...]

Prints a line of JSON for each thing it does. First N times the credentials (this SDK fetches them again only when they
are about to expire); then, when a line arrives on standard input, the caller's identity and a listing
of each bucket: whoever watches the network can tell the fetch from what the credentials are used for.
"""

import argparse
import json
import sys

import boto3
import botocore.exceptions


def say(step, **facts):
    print(json.dumps({"step": step, **facts}), flush=True)


def credentials(session):
    frozen = session.get_credentials().get_frozen_credentials()
    say(
        "credentials",
        access_key_id=frozen.access_key,
        secret_access_key=frozen.secret_key,
        session_token=frozen.token,
    )


def listing(s3, bucket):
    try:
        found = s3.list_objects_v2(Bucket=bucket)
        say("bucket", name=bucket, keys=[item["Key"] for item in found.get("Contents", [])])
    except botocore.exceptions.ClientError as error:
        say("bucket", name=bucket, error=error.response["Error"]["Code"])


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--fetches", type=int, default=1)
    arguments.add_argument("buckets", nargs="*")
    arguments = arguments.parse_args()

    session = boto3.Session()
    try:
        for _ in range(arguments.fetches):
            credentials(session)
    except botocore.exceptions.BotoCoreError as error:
        say("credentials", error=str(error))
        return 1
    if not sys.stdin.readline():
        return 0
    identity = session.client("sts").get_caller_identity()
    say("identity", arn=identity["Arn"], account=identity["Account"])
    for bucket in arguments.buckets:
        listing(session.client("s3"), bucket)
    return 0


sys.exit(main())
