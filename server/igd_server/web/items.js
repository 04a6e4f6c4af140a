// What is known of items besides their titles: attributes, in words, and a picture.
import { readItem } from "./api.js";
import { element } from "./dom.js";

const PICTURE = /^(image|img|picture|photo|thumbnail|cover|poster)([ _-]?(url|link|uri))?$/i;
const MOST_WORDS = 60; // characters: a longer text is a description
const known = new Map(); // by version and id
const MOST_KNOWN = 2000;

/** The item of that id in `version`, or null where the catalogue has none. */
export async function itemOf(version, id) {
  const key = JSON.stringify([version, id]);
  if (!known.has(key)) keep(key, itself(id, await readItem(id).catch(absent)));
  return known.get(key);
}

/** Remember items that came with all their attributes. */
export function knowItems(version, items) {
  for (const item of items) keep(JSON.stringify([version, item.item_id]), item);
}

function keep(key, item) {
  known.set(key, item);
  if (known.size > MOST_KNOWN) known.delete(known.keys().next().value);
}

/** Ids of dots alone lead a browser to another path, whose answer is no item. */
const itself = (id, item) => (item?.item_id === id ? item : null);

function absent(problem) {
  if (problem.status === 404) return null;
  throw problem;
}

/** Say what each item in `list` is, of `answer`'s items; what cannot be read now is left out. */
export async function describe(list, answer, signal) {
  const rows = [...list.children];
  const items = await Promise.all(answer.items.map(({ item_id: id }) => itemOf(answer.version, id).catch(() => null)));
  if (signal.aborted) return;
  for (const [index, item] of items.entries()) {
    if (!item || !rows[index]?.isConnected) continue;
    const words = inWords(item.attributes);
    const head = rows[index].querySelector(".score") ?? rows[index].querySelector(".title");
    if (words) head.after(element("p", { class: "note attributes" }, words));
    const source = pictureOf(item.attributes);
    if (source) rows[index].querySelector(".rank").after(picture(source));
  }
}

const picture = (src) =>
  element("img", { class: "picture", src, alt: "", loading: "lazy", referrerpolicy: "no-referrer", onerror: ({ target }) => target.remove() });

/** An https address in a column whose name says that it holds pictures. */
function pictureOf(attributes) {
  const found = Object.entries(attributes).find(([name, value]) => PICTURE.test(name) && isAddress(value));
  return found && found[1];
}

const isAddress = (value) => typeof value === "string" && /^https:\/\//i.test(value) && URL.canParse(value);

/** As "Action, Comedy · release year 1977"; pictures, long texts and what an item has not are left out. */
function inWords(attributes) {
  const words = [];
  for (const [name, value] of Object.entries(attributes)) {
    const label = name.replaceAll("_", " ");
    const isNone = value === null || value === false || value === "" || (Array.isArray(value) && !value.length);
    if (isNone || (PICTURE.test(name) && isAddress(value))) continue;
    if (value === true) words.push(label);
    else if (typeof value === "number") words.push(`${label} ${value}`);
    else words.push([value].flat().join(", "));
  }
  return words.filter((each) => each.length <= MOST_WORDS).join(" · ");
}
