// The AWS SDK for JavaScript v3 in a bare loop: so many workers, each sending one job after the other.
import { createRequire } from "node:module";
import { Agent } from "node:http";
import { Agent as SecureAgent } from "node:https";
import { parseArgs } from "node:util";

const text = { type: "string" };
const { values } = parseArgs({
  options: { url: text, jobs: text, size: text, path: text, "in-flight": text, ca: text, modules: text },
});
const require = createRequire(`${values.modules}/`);
const { SageMakerRuntimeClient, InvokeEndpointAsyncCommand } = require("@aws-sdk/client-sagemaker-runtime");

const jobs = Number(values.jobs);
const inFlight = Number(values["in-flight"]);
const payload = Buffer.from(`"${"x".repeat(Number(values.size) - 2)}"`);
const agent = { keepAlive: true, maxSockets: inFlight };
const settings = {
  region: "us-east-1",
  endpoint: values.url,
  requestHandler: { httpAgent: new Agent(agent), httpsAgent: new SecureAgent(agent) },
};
const common = { EndpointName: "bench", ContentType: "application/json" };
const runtime = new SageMakerRuntimeClient(settings);

async function inline(key) {
  return runtime.send(new InvokeEndpointAsyncCommand({ ...common, InferenceId: key, Body: payload }));
}

function byS3() {
  const { S3Client, PutObjectCommand } = require("@aws-sdk/client-s3");
  const s3 = new S3Client({ ...settings, forcePathStyle: true });
  return async (key) => {
    await s3.send(new PutObjectCommand({ Bucket: "bench-in", Key: key, Body: payload, ContentType: "application/json" }));
    const input = { ...common, InferenceId: key, InputLocation: `s3://bench-in/${key}` };
    return runtime.send(new InvokeEndpointAsyncCommand(input));
  };
}

const send = values.path === "s3" ? byS3() : inline;
let next = 0;
let receipts = 0;

async function work() {
  while (next < jobs) {
    const answer = await send(String(next++).padStart(26, "0"));
    if (!answer.OutputLocation) throw new Error("no output location");
    receipts += 1;
  }
}

await Promise.all(Array.from({ length: inFlight }, work));
console.log(JSON.stringify({ jobs: receipts }));
