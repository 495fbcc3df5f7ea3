// DOM helpers. Data is inserted only through textContent and properties, never as HTML.

/** Creates an element with the given properties and children (nodes, or strings as text). */
export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** Creates a button. The properties can replace its class and add an accessible name. */
export function button(label, onClick, properties = {}) {
  const node = element("button", { type: "button", className: "quiet small", textContent: label, ...properties });
  node.addEventListener("click", onClick);
  return node;
}

export const byId = (id) => document.getElementById(id);
