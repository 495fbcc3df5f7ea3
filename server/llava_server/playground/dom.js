// DOM helpers. Data is inserted only through textContent and properties, never as HTML.

/** Creates an element with the given properties and children (nodes, or strings as text). */
export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

export const byId = (id) => document.getElementById(id);
