// A request as text to paste: a curl command for a POSIX shell, or a program for the openai package.
// Small images are part of the text; large ones are read from their files, so that it stays readable.

const INLINE_CHARS = 100_000;

/** @typedef {{body: object, images: import("./images.js").ImageFile[], usesKey: boolean}} Request */

/** @param {Request} request */
export function asCurl(request, origin) {
  const files = filesOf(request);
  const escaped = files.size ? (text) => text.replace(/[\\$`]/g, "\\$&") : (text) => text; // expanded below
  const lines = [];
  for (const { image, number } of files.values()) {
    const prefix = `data:${mediaType(image)};base64`;
    lines.push(`PICTURE_${number}="${prefix},$(base64 < ${shellQuoted(image.name)} | tr -d '\\n')"`);
  }
  lines.push(`curl -N ${shellQuoted(`${origin}/v1/chat/completions`)} \\`);
  if (request.usesKey) lines.push('  -H "Authorization: Bearer $LLAVA_API_KEY" \\');
  lines.push("  -H 'Content-Type: application/json' \\");
  lines.push(`  --data-binary @- <<${files.size ? "JSON" : "'JSON'"}`); // unquoted: the shell fills in $PICTURE_1
  const leaf = (value) =>
    files.has(value) ? `"$PICTURE_${files.get(value).number}"` : escaped(JSON.stringify(value));
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
  "def picture(path: str, kind: str) -> str:",
  '    with open(path, "rb") as file:',
  '        return f"data:{kind};base64,{base64.b64encode(file.read()).decode()}"',
  "",
  "",
];

/** Maps data: URLs to the image and its number, for the images that are read from their files. */
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
  if (!files.has(value)) return JSON.stringify(value); // a JSON string or number is also a Python one
  const { image } = files.get(value);
  return `picture(${JSON.stringify(image.name)}, ${JSON.stringify(mediaType(image))})`;
}

/** Objects and arrays as JSON and Python both write them; leaf() writes everything else. */
function literal(value, leaf, indent, step) {
  if (typeof value !== "object") return leaf(value);
  const deeper = indent + step;
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const items = Array.isArray(value)
    ? value.map((item) => literal(item, leaf, deeper, step))
    : Object.entries(value).map(([name, item]) => `"${name}": ${literal(item, leaf, deeper, step)}`);
  const flat = `${open}${items.join(", ")}${close}`;
  if (flat.length <= 72 && !flat.includes("\n")) return flat;
  return `${open}\n${items.map((item) => deeper + item).join(",\n")}\n${indent}${close}`;
}
