// The part of clients.py that runs in Node: node clients.mjs FOLDER_WITH_node_modules BUNDLE FILES.json
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, bundle, listed] = process.argv.slice(2);
const require = createRequire(pathToFileURL(`${folder}/package.json`));
const entry = require.resolve("@huggingface/transformers");
const { env, pipeline, RawImage } = await import(pathToFileURL(entry).href);
const version = env.version ?? "";

env.allowRemoteModels = false;
env.localModelPath = dirname(bundle) + "/";
const files = JSON.parse(readFileSync(listed, "utf8"));

async function attempt(what, start) {
  const line = { client: `transformers.js ${version}`, what };
  try {
    const step = await start();
    line.answers = {};
    for (const file of files) {
      try {
        line.answers[file] = await step(await RawImage.read(file));
      } catch (why) {
        line.answers[file] = String(why);
      }
    }
  } catch (why) {
    line.refused = String(why).replace(/\s+/g, " ").slice(0, 100);
  }
  console.log(JSON.stringify(line));
}

for (const dtype of ["fp32", "q8"]) {
  await attempt(`pipeline image-feature-extraction, pool, ${dtype}`, async () => {
    const extract = await pipeline("image-feature-extraction", basename(bundle), { dtype });
    return async (image) => [Array.from((await extract(image, { pool: true })).data), null];
  });
  await attempt(`pipeline image-classification, ${dtype}`, async () => {
    const classify = await pipeline("image-classification", basename(bundle), { dtype });
    return async (image) => [null, (await classify(image, { top_k: 1 }))[0].label];
  });
}
