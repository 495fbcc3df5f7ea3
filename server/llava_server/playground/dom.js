// Making elements. Data enters the page through textContent and properties only, never as HTML.

/** An element with properties and children (nodes, or strings as text). */
export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

export const byId = (id) => document.getElementById(id);
