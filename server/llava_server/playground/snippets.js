// Converts a request to a curl command for a POSIX shell or to a Python program for the openai package.
// Small images are inlined; large ones are read from their files to keep the text readable.

const INLINE_CHARS = 100_000;

/** @typedef {{body: object, images: import("./images.js").ImageFile[], usesKey: boolean}} Request */

/** @param {Request} request */
export function asCurl(request, origin) {
  const files = filesOf(request);
  // With image files, the shell expands the here-document, so its special characters must be escaped.
  const escaped = files.size ? (text) => text.replace(/[\\$`]/g, "\\$&") : (text) => text;
  const lines = [];
  for (const { image, number } of files.values()) {
    const prefix = `data:${mediaType(image)};base64`;
    lines.push(`IMAGE_${number}="${prefix},$(base64 < ${shellQuoted(image.name)} | tr -d '\\n')"`);
  }
  lines.push(`curl -N ${shellQuoted(`${origin}/v1/chat/completions`)} \\`);
  if (request.usesKey) lines.push('  -H "Authorization: Bearer $LLAVA_API_KEY" \\');
  lines.push("  -H 'Content-Type: application/json' \\");
  lines.push(`  --data-binary @- <<${files.size ? "JSON" : "'JSON'"}`); // unquoted: the shell expands $IMAGE_1
  const leaf = (value) => (files.has(value) ? `"$IMAGE_${files.get(value).number}"` : escaped(JSON.stringify(value)));
  lines.push(literal(request.body, leaf, "", "  "), "JSON");
  return `${lines.join("\n")}\n`;
}

/** @param {Request} request */
export function asPython(request, origin) {
  const files = filesOf(request);
  const lines = [];
  if (files.size) lines.push("import base64");
  if (request.usesKey) lines.push("import os");
  if (lines.length) lines.push("");
  lines.push("from openai import OpenAI", "");
  if (files.size) lines.push(...IMAGE_FUNCTION);
  const key = request.usesKey ? 'os.environ["LLAVA_API_KEY"]' : '"none"';
  lines.push(`client = OpenAI(base_url=${JSON.stringify(`${origin}/v1`)}, api_key=${key})`);
  lines.push("stream = client.chat.completions.create(");
  const leaf = (value) => pythonLeaf(value, files);
  for (const [name, value] of Object.entries(request.body)) {
    lines.push(`    ${name}=${literal(value, leaf, "    ", "    ")},`);
  }
  lines.push(")", "for chunk in stream:", "    for choice in chunk.choices:");
  lines.push('        print(choice.delta.content or "", end="", flush=True)', "print()");
  return `${lines.join("\n")}\n`;
}

const IMAGE_FUNCTION = [
  "",
  "def image_url(path: str, media_type: str) -> str:",
  '    with open(path, "rb") as file:',
  '        return f"data:{media_type};base64,{base64.b64encode(file.read()).decode()}"',
  "",
  "",
];

/** Returns a map with { image, number } for each image that the snippet reads from a file, keyed by data: URL. */
function filesOf({ images }) {
  const files = new Map();
  const numChars = images.reduce((sum, image) => sum + image.url.length, 0);
  if (numChars <= INLINE_CHARS) return files;
  for (const image of images) {
    const isNew = image.isFile && !files.has(image.url);
    if (isNew) files.set(image.url, { image, number: files.size + 1 });
  }
  return files;
}

function mediaType(image) {
  return image.url.slice("data:".length, image.url.indexOf(";"));
}

function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function pythonLeaf(value, files) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (!files.has(value)) return JSON.stringify(value); // JSON strings and numbers are valid Python
  const { image } = files.get(value);
  return `image_url(${JSON.stringify(image.name)}, ${JSON.stringify(mediaType(image))})`;
}

/** Formats objects and arrays, whose syntax is the same in JSON and Python. leaf() formats names and other values. */
function literal(value, leaf, indent, step) {
  if (value === null || typeof value !== "object") return leaf(value);
  const deeper = indent + step;
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const items = Array.isArray(value)
    ? value.map((item) => literal(item, leaf, deeper, step))
    : Object.entries(value).map(([name, item]) => `${leaf(name)}: ${literal(item, leaf, deeper, step)}`);
  const flat = `${open}${items.join(", ")}${close}`;
  if (flat.length <= 72 && !flat.includes("\n")) return flat;
  return `${open}\n${items.map((item) => deeper + item).join(",\n")}\n${indent}${close}`;
}
