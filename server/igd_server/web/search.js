// The search field: a combobox with a list box, after the ARIA Authoring Practices.
import { findItems } from "./api.js";
import { byId, debounced, element, titled } from "./dom.js";

const MOST = 8;
const WAIT_MS = 150;

/** `isTaken(item)` leaves an item out; `onPick(item)` is called with the one picked, `onProblem` with what went wrong. */
export function searchField({ isTaken, onPick, onProblem }) {
  const input = byId("search");
  const list = byId("found");
  const note = byId("search-note");
  let items = [];
  let active = -1;
  let moved = false; // whether an arrow key marked the active one
  let shown = null; // the query that `items` answers
  let running = null;

  function close() {
    running?.abort();
    items = [];
    active = -1;
    moved = false;
    shown = null;
    list.hidden = true;
    list.replaceChildren();
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function activate(index) {
    active = index;
    for (const [at, option] of [...list.children].entries()) option.setAttribute("aria-selected", String(at === index));
    if (index < 0) return;
    input.setAttribute("aria-activedescendant", `found-${index}`);
    list.children[index].scrollIntoView({ block: "nearest" });
  }

  function pick(index) {
    const item = items[index];
    input.value = "";
    note.textContent = "";
    close();
    onPick(item);
  }

  /** Shows `items`, the answer to `query`, and marks the one at index `marked`, if any. */
  function show(query, marked) {
    list.replaceChildren(
      ...items.map((item, index) =>
        element(
          "li",
          {
            id: `found-${index}`,
            role: "option",
            // The field keeps the focus, so that its `blur` does not close the list before the click.
            onpointerdown: (event) => event.preventDefault(),
            onclick: () => pick(index),
          },
          titled(item.title),
          element("span", { class: "count" }, `${item.interactions}`, element("span", { class: "unseen" }, " interactions")),
        ),
      ),
    );
    list.hidden = items.length === 0;
    input.setAttribute("aria-expanded", String(items.length > 0));
    input.removeAttribute("aria-activedescendant");
    activate(marked);
    if (items.length) note.textContent = `${items.length} found${query ? "" : ": the most popular"}.`;
    else note.textContent = query ? "No other title has that in it." : "";
  }

  async function search() {
    running?.abort();
    const { signal } = (running = new AbortController());
    const query = input.value.trim();
    try {
      // As many more as may be left out because they are in the history already.
      const found = await findItems(query, Math.min(100, MOST * 4), signal);
      // Whoever left the field meanwhile wants no list over the page.
      if (signal.aborted || document.activeElement !== input) return;
      const chosen = moved ? items[active] : undefined;
      shown = query;
      items = found.filter((item) => !isTaken(item)).slice(0, MOST);
      // The arrow keys' choice stays while it is still among the answers: they may come after the key was pressed.
      const kept = items.findIndex((item) => item.item_id === chosen?.item_id);
      moved = kept >= 0;
      // Otherwise Enter takes the best match of what was typed; nothing is preselected in the list of popular items.
      show(query, moved ? kept : query && items.length ? 0 : -1);
    } catch (error) {
      if (signal.aborted) return;
      close();
      note.textContent = `${error.title ?? error}: ${error.detail ?? ""}`;
      onProblem(error);
    }
  }

  /** Enter: what is marked; if more was typed since it was found, the best match of what stands there now. */
  async function take() {
    const query = input.value.trim();
    if (query && shown !== query) await search();
    if (active >= 0 && shown === query) pick(active);
  }

  const searchSoon = debounced(() => input.value.trim() && shown !== input.value.trim() && search(), WAIT_MS);

  input.addEventListener("input", () => {
    if (input.value.trim()) return searchSoon();
    note.textContent = "";
    close();
  });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && list.hidden) {
      event.preventDefault();
      search();
    } else if (step) {
      event.preventDefault();
      moved = true;
      activate(active < 0 && step < 0 ? items.length - 1 : (active + step + items.length) % items.length);
    } else if (event.key === "Enter") {
      event.preventDefault();
      take();
    } else if (event.key === "Escape") {
      event.preventDefault();
      if (list.hidden) input.value = "";
      note.textContent = "";
      close();
    }
  });
}
