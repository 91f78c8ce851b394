// The AWS SDK for JavaScript as a pod's application uses it: the default chain, nothing configured in code.
//
// fetch.mjs [--fetches=N] [BUCKET...], with the directory of node_modules in NODE_MODULES_OF
//
// Does and prints what fetch.py does and prints.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

// The packages are installed outside of the repository, where an import would not look.
const require = createRequire(`${process.env.NODE_MODULES_OF}/`);
const { S3Client, ListObjectsV2Command } = require("@aws-sdk/client-s3");
const { STSClient, GetCallerIdentityCommand } = require("@aws-sdk/client-sts");

const say = (step, facts) => console.log(JSON.stringify({ step, ...facts }));

const options = process.argv.slice(2);
const fetches = options[0]?.startsWith("--fetches=") ? Number(options.shift().split("=")[1]) : 1;
const sts = new STSClient({});

try {
  for (let fetch = 0; fetch < fetches; fetch += 1) {
    const { accessKeyId, secretAccessKey, sessionToken } = await sts.config.credentials({ forceRefresh: true });
    say("credentials", {
      access_key_id: accessKeyId,
      secret_access_key: secretAccessKey,
      session_token: sessionToken,
    });
  }
} catch (error) {
  say("credentials", { error: `${error.name}: ${error.message}` });
  process.exit(1);
}

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
if ((await lines.next()).done) process.exit(0);
const { Arn, Account } = await sts.send(new GetCallerIdentityCommand({}));
say("identity", { arn: Arn, account: Account });
// An endpoint that is an IP address has no subdomains for buckets.
const s3 = new S3Client({ credentials: sts.config.credentials, forcePathStyle: true });
for (const name of options) {
  try {
    const found = await s3.send(new ListObjectsV2Command({ Bucket: name }));
    say("bucket", { name, keys: (found.Contents ?? []).map((item) => item.Key) });
  } catch (error) {
    say("bucket", { name, error: error.name });
  }
}
process.exit(0);
