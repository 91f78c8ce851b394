"""The AWS SDK for Python signing requests, for as long as it holds credentials: nothing is sent but to the agent.

sign.py [--signings N]

Fetches credentials and prints a line of JSON with them. When a line arrives on standard input it signs N requests, each
as a call of an application is signed (which is when this SDK decides whether to fetch again), and prints how often each
access key was used, in the order of their first use.
"""

import argparse
import json
import sys
import urllib.parse

import boto3
import botocore.exceptions


def say(step, **facts):
    print(json.dumps({"step": step, **facts}), flush=True)


def signed_with(url):
    """The access key of a presigned URL."""
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)
    return query["X-Amz-Credential"][0].split("/")[0]


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--signings", type=int, default=1)
    arguments = arguments.parse_args()

    session = boto3.Session()
    try:
        frozen = session.get_credentials().get_frozen_credentials()
    except botocore.exceptions.BotoCoreError as error:
        say("credentials", error=str(error))
        return 1
    say(
        "credentials",
        access_key_id=frozen.access_key,
        secret_access_key=frozen.secret_key,
        session_token=frozen.token,
    )
    sts = session.client("sts")
    while sys.stdin.readline():
        keys = {}
        for _ in range(arguments.signings):
            key = signed_with(sts.generate_presigned_url("get_caller_identity"))
            keys[key] = keys.get(key, 0) + 1
        say("signed", keys=[[key, count] for key, count in keys.items()])
    return 0


sys.exit(main())
