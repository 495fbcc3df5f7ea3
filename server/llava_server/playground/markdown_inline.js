// Inline Markdown: code, emphasis, links and line breaks, as DOM nodes. HTML is shown as text.
//
// The running time is linear in the length of the text: after a delimiter has been found to have no closing delimiter,
// it is not searched for again. Images are shown as links, because the page loads no files from other hosts.

import { element } from "./dom.js";

const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}_]/u;
const BARE_URL = /https?:\/\/[^\s<>"'`]+/y;
const PROTOCOLS = new Set(["http:", "https:", "mailto:"]);
const TAGS = { "**": "strong", __: "strong", "*": "em", _: "em", "~~": "del" };
const MAX_DEPTH = 8;

/** Returns the DOM nodes and strings for a text. */
export function inlineNodes(text, depth = 0) {
  const nodes = [];
  const missing = new Set(); // closing delimiters that do not occur in the rest of the text
  let plain = "";
  let position = 0;
  while (position < text.length) {
    const span = spanAt(text, position, missing, depth);
    if (span === null) {
      plain += text[position];
      position += 1;
    } else if (typeof span.node === "string") {
      plain += span.node;
      position = span.end;
    } else {
      if (plain) nodes.push(plain);
      plain = "";
      nodes.push(span.node);
      position = span.end;
    }
  }
  return plain ? [...nodes, plain] : nodes;
}

/** Returns the { node, end } of the span that starts at a position, or null if the character is plain text. */
function spanAt(text, start, missing, depth) {
  switch (text[start]) {
    case "\\":
      return PUNCTUATION.test(text[start + 1] ?? "") ? { node: text[start + 1], end: start + 2 } : null;
    case "\n":
      return { node: element("br"), end: start + 1 };
    case "`":
      return codeSpan(text, start, missing);
    case "*":
    case "_":
    case "~":
      return depth < MAX_DEPTH ? emphasis(text, start, missing, depth) : null;
    case "!":
      return text[start + 1] === "[" ? link(text, start, start + 1, missing, depth) : null;
    case "[":
      return link(text, start, start, missing, depth);
    case "h":
      return bareLink(text, start);
    default:
      return null;
  }
}

function codeSpan(text, start, missing) {
  const end = runEnd(text, start);
  const run = text.slice(start, end);
  const close = missing.has(run) ? -1 : findRun(text, "`", end, (from, to) => to - from === run.length);
  if (close < 0) {
    missing.add(run);
    return { node: run, end };
  }
  const code = text.slice(end, close).replaceAll("\n", " ");
  return { node: element("code", { textContent: code.trim() || code }), end: close + run.length };
}

function emphasis(text, start, missing, depth) {
  const letter = text[start];
  const delimiter = text[start + 1] === letter ? letter + letter : letter;
  const inside = start + delimiter.length;
  const tag = TAGS[delimiter];
  const isOpening = /\S/.test(text[inside] ?? "") && !(letter === "_" && WORD.test(text[start - 1] ?? ""));
  if (!tag || !isOpening || missing.has(delimiter)) return { node: delimiter, end: inside };
  const isClosing = (from, to) => {
    if (/\s/.test(text[from - 1]) || (letter === "_" && WORD.test(text[to] ?? ""))) return false;
    return delimiter.length === 2 ? to - from >= 2 : (to - from) % 2 === 1;
  };
  const close = findRun(text, letter, inside + 1, isClosing, delimiter.length);
  if (close < 0) {
    missing.add(delimiter);
    return { node: delimiter, end: inside };
  }
  const node = element(tag, {}, ...inlineNodes(text.slice(inside, close), depth + 1));
  return { node, end: close + delimiter.length };
}

function link(text, start, bracket, missing, depth) {
  if (missing.has("](")) return null;
  const middle = text.indexOf("](", bracket);
  const end = middle < 0 ? -1 : text.indexOf(")", middle);
  if (end < 0) {
    missing.add("](");
    return null;
  }
  const url = safeUrl(
    text
      .slice(middle + 2, end)
      .trim()
      .split(/\s/, 1)[0],
  );
  if (url === null || depth >= MAX_DEPTH) return { node: text.slice(start, end + 1), end: end + 1 };
  const label = text.slice(bracket + 1, middle);
  return { node: anchor(url, label ? withoutLinks(label) : [url]), end: end + 1 };
}

/** Returns the nodes of a link's label, in which links are shown as text. */
function withoutLinks(label) {
  return inlineNodes(label, MAX_DEPTH);
}

function bareLink(text, start) {
  BARE_URL.lastIndex = start;
  const found = BARE_URL.exec(text)?.[0];
  if (!found) return null;
  let end = found.length;
  while (".,;:!?)]*_~".includes(found[end - 1])) end -= 1;
  const url = safeUrl(found.slice(0, end));
  // An invalid URL is text up to its end. Otherwise, each "http://" in it would be parsed again.
  if (url === null) return { node: found, end: start + found.length };
  return { node: anchor(url, [found.slice(0, end)]), end: start + end };
}

function anchor(url, children) {
  return element("a", { href: url, title: url, target: "_blank", rel: "noopener noreferrer" }, ...children);
}

/** Returns an absolute URL that can be opened safely, or null. Scripts and data: URLs are not safe. */
function safeUrl(text) {
  try {
    const url = new URL(text);
    return PROTOCOLS.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function runEnd(text, start) {
  let end = start;
  while (text[end] === text[start]) end += 1;
  return end;
}

/** Returns where the last `length` letters of the first accepted run of a letter start, or -1. */
function findRun(text, letter, from, isAccepted, length = null) {
  for (let start = text.indexOf(letter, from); start >= 0;) {
    const end = runEnd(text, start);
    if (isAccepted(start, end)) return length === null ? start : end - length;
    start = text.indexOf(letter, end);
  }
  return -1;
}
