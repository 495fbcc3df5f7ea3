// Renders Markdown as DOM nodes. HTML in the text is shown as text.
//
// While a response is streamed, only the blocks that have changed are rendered.

import { copyButton } from "./clipboard.js";
import { element } from "./dom.js";
import { inlineNodes } from "./markdown_inline.js";

const FENCE = /^ {0,3}(`{3,}(?!`)|~{3,}(?!~))([^`]*)$/; // the lookaheads prevent quadratic backtracking
const HEADING = /^ {0,3}(#{1,6})[ \t]+(\S.*)$/;
const RULE = /^ {0,3}([-*_])([ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])[ \t]+(?=\S)/;
const ALIGNMENT = /^:?-+:?$/;
const MAX_DEPTH = 8;
const LOWEST_HEADING = 6;
const PAGE_HEADINGS = 2; // the page itself uses levels 1 and 2

const sources = new WeakMap(); // the Markdown of each rendered block

/** Shows Markdown in an element. Blocks that have not changed since the last call are kept. */
export function renderMarkdown(target, text) {
  const blocks = blocksOf(text.split(/\r\n?|\n/), 0);
  let same = 0;
  while (same < blocks.length && sources.get(target.childNodes[same]) === blocks[same].source) same += 1;
  while (target.childNodes.length > same) target.lastChild.remove();
  for (const { source, render } of blocks.slice(same)) {
    const node = render();
    sources.set(node, source);
    target.append(node);
  }
}

/** Creates a code block with a header that has a copy button. */
export function codeBlock(code, language) {
  const header = element("div", { className: "code-header" }, element("span", { textContent: language || "text" }));
  header.append(copyButton("Copy code", () => code));
  const pre = element(
    "pre",
    { tabIndex: 0, ariaLabel: `Code, ${language || "text"}` },
    element("code", { textContent: code }),
  );
  pre.setAttribute("role", "region");
  return element("div", { className: "code-block" }, header, pre);
}

/** Returns the blocks of some lines, as { source, render }. */
function blocksOf(lines, depth) {
  const readers = depth < MAX_DEPTH ? [fence, heading, rule, quote, list, table] : [fence];
  const blocks = [];
  let start = 0;
  while (start < lines.length) {
    if (lines[start].trim() === "") {
      start += 1;
      continue;
    }
    let block = null;
    for (const reader of readers) block ??= reader(lines, start, depth);
    block ??= paragraph(lines, start, depth);
    blocks.push({ source: `${lines.slice(start, block.end).join("\n")}\n`, render: block.render });
    start = block.end;
  }
  return blocks;
}

function nodesOf(lines, depth) {
  return blocksOf(lines, depth).map(({ render }) => render());
}

// Each reader returns the { end, render } of the block that starts at a line, or null.

function fence(lines, start) {
  const [, marker, info] = FENCE.exec(lines[start]) ?? [];
  if (!marker) return null;
  const [language] = info.trim().split(/\s/, 1);
  let close = start + 1;
  while (close < lines.length && !isClosingFence(lines[close].trim(), marker)) close += 1;
  const render = () => codeBlock(lines.slice(start + 1, close).join("\n"), language);
  return { end: Math.min(close + 1, lines.length), render };
}

function isClosingFence(line, marker) {
  return line.startsWith(marker) && line.replaceAll(marker[0], "") === "";
}

function heading(lines, start) {
  const [, marks, text] = HEADING.exec(lines[start]) ?? [];
  if (!marks) return null;
  const level = Math.min(marks.length + PAGE_HEADINGS, LOWEST_HEADING);
  return { end: start + 1, render: () => element(`h${level}`, {}, ...inlineNodes(text)) };
}

function rule(lines, start) {
  return RULE.test(lines[start]) ? { end: start + 1, render: () => element("hr") } : null;
}

function quote(lines, start, depth) {
  let end = start;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = () => lines.slice(start, end).map((line) => line.replace(QUOTE, ""));
  return end > start ? { end, render: () => element("blockquote", {}, ...nodesOf(inner(), depth + 1)) } : null;
}

function list(lines, start, depth) {
  const first = ITEM.exec(lines[start]);
  if (!first || RULE.test(lines[start])) return null;
  const isOrdered = /\d/.test(first[2]);
  const items = [];
  let end = start;
  let indent = 0;
  for (; end < lines.length; end += 1) {
    const item = ITEM.exec(lines[end]);
    const isSibling = item && item[1].length < first[1].length + 2 && /\d/.test(item[2]) === isOrdered;
    if (isSibling) {
      indent = item[0].length;
      items.push([lines[end].slice(indent)]);
    } else if (lines[end].trim() === "") {
      if (!continuesAfterBlank(lines, end, first[1].length)) break;
      items.at(-1).push("");
    } else if (/^ {2}/.test(lines[end].slice(first[1].length)) || (!item && lines[end - 1].trim() !== "")) {
      items.at(-1).push(withoutIndent(lines[end], indent));
    } else {
      break;
    }
  }
  const render = () => {
    const elements = items.map((item) => element("li", {}, ...itemNodes(item, depth)));
    const properties = isOrdered ? { start: parseInt(first[2], 10) } : {};
    return element(isOrdered ? "ol" : "ul", properties, ...elements);
  };
  return { end, render };
}

function continuesAfterBlank(lines, blank, indent) {
  const next = lines[blank + 1] ?? "";
  return next.trim() !== "" && (next.startsWith(" ".repeat(indent + 2)) || ITEM.test(next));
}

function withoutIndent(line, indent) {
  let start = 0;
  while (start < indent && line[start] === " ") start += 1;
  return line.slice(start);
}

/** Returns the nodes of a list item. The text of a tight item has no paragraph. */
function itemNodes(lines, depth) {
  const isTight = !lines.includes("");
  return nodesOf(lines, depth + 1).flatMap((node) =>
    node.tagName === "P" && isTight ? [...node.childNodes] : [node],
  );
}

function table(lines, start) {
  const header = cellsOf(lines[start]);
  const alignments = cellsOf(lines[start + 1] ?? "");
  const isTable =
    lines[start].includes("|") &&
    alignments.length === header.length &&
    alignments.every((cell) => ALIGNMENT.test(cell));
  if (!isTable) return null;
  let end = start + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  // Missing cells are not added: the table would have many more cells than the text has characters.
  const row = (tag, cells) =>
    element("tr", {}, ...cells.slice(0, header.length).map((cell) => element(tag, {}, ...inlineNodes(cell))));
  const render = () => {
    const body = lines.slice(start + 2, end).map((line) => row("td", cellsOf(line)));
    const whole = element("table", {}, element("thead", {}, row("th", header)), element("tbody", {}, ...body));
    const scroller = element("div", { className: "table", tabIndex: 0, ariaLabel: "Table" }, whole);
    scroller.setAttribute("role", "region");
    return scroller;
  };
  return { end, render };
}

function cellsOf(line) {
  const cells = line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|");
  return cells.map((cell) => cell.trim());
}

function paragraph(lines, start, depth) {
  const isBlockStart = (line) =>
    line.trim() === "" ||
    (depth < MAX_DEPTH && [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line)));
  let end = start + 1;
  while (end < lines.length && !isBlockStart(lines[end])) end += 1;
  return { end, render: () => element("p", {}, ...inlineNodes(lines.slice(start, end).join("\n"))) };
}
