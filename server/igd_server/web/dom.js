// Building elements. Titles, tokens and problem details come from outside: they only ever become text nodes.

/** The element of that id. */
export const byId = (id) => document.getElementById(id);

/** An element with attributes (null and false leave one out) and children (strings become text). */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A title, isolated, so that one in another direction does not turn its surroundings round. */
export const titled = (title, attributes = {}) => element("bdi", { class: "title", ...attributes }, title);

/** `call` once no further call has come for `wait` ms. */
export function debounced(call, wait) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), wait);
  };
}
