// What the page shows, in its address behind the "#": it can be sent to somebody, and no server or log sees it.
import { byId } from "./dom.js";

const MOST_ITEMS = 100; // of a history; a longer address is cut
const SLIDERS = ["alpha", "beams", "k"];

/** The settings that the page begins with, to leave out of the address. */
let usual = {};

const shown = () => ({
  ...Object.fromEntries(SLIDERS.map((id) => [id, byId(id).value])),
  gamma: byId("own-gamma").checked ? "" : byId("gamma").value,
  decisions: byId("decisions").checked ? "1" : "",
  tokens: byId("tokens").checked ? "1" : "",
  where: byId("attribute").value,
  is: byId("attribute").value && byId("value").value.trim(),
});

/** Whether the address says what to show, and the ids of its history, oldest first. */
export function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  return { isGiven: given.size > 0, ids: given.getAll("item").filter(Boolean).slice(-MOST_ITEMS) };
}

/** Take what the controls say now for usual. */
export function keepUsual() {
  usual = shown();
}

/** Set the controls as the address says, and the others as usual; `onAttribute` follows the choice of an attribute. */
export function applyAddress(onAttribute) {
  const given = new URLSearchParams(location.hash.slice(1));
  const said = (name) => given.get(name) ?? usual[name];
  const choices = (id) => [...byId(id).options].map(({ value }) => value);
  if (choices("k").includes(said("k"))) byId("k").value = said("k");
  byId("beams").min = byId("k").value;
  const isNumber = (value) => value !== "" && Number.isFinite(Number(value));
  for (const id of ["alpha", "beams", "gamma"]) {
    if (isNumber(said(id))) byId(id).value = said(id); // the field keeps its range
  }
  byId("own-gamma").checked = !isNumber(said("gamma"));
  byId("decisions").checked = said("decisions") === "1";
  byId("tokens").checked = said("tokens") === "1";
  byId("attribute").value = choices("attribute").includes(said("where")) ? said("where") : "";
  onAttribute();
  if (byId("attribute").value) byId("value").value = said("is");
}

/** Write what is shown; with `isNew`, as a step that the browser's Back takes back. */
export function writeAddress(items, { isNew }) {
  const parts = new URLSearchParams(items.map((item) => ["item", item.item_id]));
  for (const [name, value] of Object.entries(shown())) if (value !== usual[name]) parts.set(name, value);
  if (!parts.size) parts.set("item", ""); // nobody's history, and not the first person's
  const address = `#${parts}`;
  if (address === location.hash) return;
  if (isNew) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
}
