// The tokens of a response, colored by probability. Hovering or focusing a token shows the most likely alternatives.

import { element } from "./dom.js";

const LEVELS = [0.9, 0.7, 0.4, 0.15]; // lower bounds; less likely tokens have a stronger color

/**
 * @typedef {object} Token
 * @property {string} text
 * @property {number} logprob  natural logarithm
 * @property {[string, number][]} top  the most likely tokens at this position, with their logprobs
 */

/** Returns the tokens in a chunk of a streamed response. */
export function tokensOf(chunk) {
  const scored = chunk.choices?.[0]?.logprobs?.content ?? [];
  return scored.map(({ token, logprob, top_logprobs: top }) => ({
    text: token,
    logprob,
    top: top.map((other) => [other.token, other.logprob]),
  }));
}

/** Shows tokens in an element. The arrow keys move between tokens, which together are one tab stop. */
export function showTokens(target, tokens) {
  const tip = element("div", {
    className: "token-tip",
    id: `tip-${crypto.getRandomValues(new Uint32Array(1))[0]}`,
    hidden: true,
  });
  tip.setAttribute("role", "tooltip");
  const nodes = tokens.map((token, index) => tokenNode(token, index === 0 ? 0 : -1, tip.id));
  const group = element("div", { className: "tokens", ariaLabel: "Tokens and their probabilities" }, ...nodes, tip);
  group.setAttribute("role", "group");
  const show = (event) => {
    const index = nodes.indexOf(event.target);
    if (index >= 0) showTip(tip, tokens[index], nodes[index], group);
  };
  const hide = () => {
    tip.hidden = true;
  };
  group.addEventListener("pointerover", show);
  group.addEventListener("pointerleave", hide);
  group.addEventListener("focusin", show);
  group.addEventListener("focusout", hide);
  group.addEventListener("keydown", (event) => moveFocus(event, nodes, hide));
  target.replaceChildren(group);
}

function tokenNode({ text, logprob }, tabIndex, tipId) {
  const likely = Math.exp(logprob);
  const level = LEVELS.findIndex((bound) => likely >= bound);
  const className = `token level-${level < 0 ? LEVELS.length : level}`;
  const node = element("button", { type: "button", className, tabIndex, textContent: text });
  node.setAttribute("aria-describedby", tipId);
  if (text.trim() === "") node.ariaLabel = JSON.stringify(text);
  return node;
}

function showTip(tip, { text, logprob, top }, node, group) {
  const isListed = top.some(([other]) => other === text);
  const rows = (isListed ? top : [...top, [text, logprob]]).map(([other, score]) => {
    const row = element("span", {}, element("code", { textContent: JSON.stringify(other) }), ` ${percent(score)}`);
    row.classList.toggle("is-sampled", other === text);
    return row;
  });
  tip.replaceChildren(...rows);
  tip.hidden = false;
  tip.style.top = `${node.offsetTop + node.offsetHeight}px`;
  tip.style.left = `${Math.max(0, Math.min(node.offsetLeft, group.clientWidth - tip.offsetWidth))}px`;
}

function percent(logprob) {
  const value = Math.exp(logprob) * 100;
  return `${value < 0.1 ? "<0.1" : value.toFixed(1)} %`;
}

function moveFocus(event, nodes, hide) {
  const index = nodes.indexOf(event.target);
  const target = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: nodes.length - 1 }[event.key];
  if (event.key === "Escape") hide();
  if (target === undefined || !nodes[target]) return;
  event.preventDefault();
  nodes[index].tabIndex = -1;
  nodes[target].tabIndex = 0;
  nodes[target].focus();
}
