// A request as text to paste: a curl command for a POSIX shell, or a program for the openai package.
// Small pictures stand in the text itself; large ones are read from their files, so that it stays readable.

const INLINE_CHARS = 100_000;

/** @typedef {{body: object, pictures: import("./images.js").Picture[], usesKey: boolean}} Request */

/** @param {Request} request */
export function asCurl(request, origin) {
  const files = filesOf(request);
  const escaped = files.size ? (text) => text.replace(/[\\$`]/g, "\\$&") : (text) => text; // expanded below
  const lines = [];
  for (const { picture, number } of files.values()) {
    const prefix = `data:${kindOf(picture)};base64`;
    lines.push(`PICTURE_${number}="${prefix},$(base64 < ${shellQuoted(picture.name)} | tr -d '\\n')"`);
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
  if (files.size) lines.push(...PICTURE_FUNCTION);
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

const PICTURE_FUNCTION = [
  "",
  "def picture(path: str, kind: str) -> str:",
  '    with open(path, "rb") as file:',
  '        return f"data:{kind};base64,{base64.b64encode(file.read()).decode()}"',
  "",
  "",
];

/** data: URL -> the picture and its number, for the pictures that are read from their files. */
function filesOf({ pictures }) {
  const files = new Map();
  const numChars = pictures.reduce((sum, picture) => sum + picture.url.length, 0);
  if (numChars <= INLINE_CHARS) return files;
  for (const picture of pictures) {
    const isNew = picture.isFile && !files.has(picture.url);
    if (isNew) files.set(picture.url, { picture, number: files.size + 1 });
  }
  return files;
}

function kindOf(picture) {
  return picture.url.slice("data:".length, picture.url.indexOf(";"));
}

function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function pythonLeaf(value, files) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (!files.has(value)) return JSON.stringify(value); // a JSON string or number is also a Python one
  const { picture } = files.get(value);
  return `picture(${JSON.stringify(picture.name)}, ${JSON.stringify(kindOf(picture))})`;
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
