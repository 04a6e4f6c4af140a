// Requests to this server, relative to the page, so that it works under a path prefix too.

/** What the server, or the way to it, answered instead of a result: RFC 9457's fields. */
export class Problem extends Error {
  constructor({ title, detail = "", field = null, status = 0, request_id = null }) {
    super(title);
    Object.assign(this, { title, detail, field, status, requestId: request_id });
  }
}

const KEY = "igd-key"; // of this tab, and gone with it
let key = keptKey();

function keptKey() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null; // a browser that lets no page store anything
  }
}

export const hasKey = () => Boolean(key);

/** Send this API key from now on; where the browser stores nothing, until the page is left. */
export function useKey(text) {
  key = text;
  try {
    sessionStorage.setItem(KEY, text);
  } catch {
    // It stays in this page.
  }
}

async function fetchJson(path, options) {
  let response;
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "The server cannot be reached", detail: "No answer came; is it running?" });
  }
  let body;
  try {
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({
      title: "The answer is not JSON",
      detail: `HTTP ${response.status} ${response.statusText}`.trim(),
      status: response.status,
    });
  }
  if (response.ok) return body;
  throw new Problem({ ...body, title: body.title || `HTTP ${response.status}`, status: response.status });
}

/** The catalogues being served, and the server's variants. */
export const servedCatalogues = () => fetchJson("v1/catalogues", { cache: "no-store" });

/** The same and what became of the answers, for operators. */
export const overview = () => fetchJson("v1/admin/overview", { cache: "no-store" });

/** Have all servers of a catalogue do something: `rollback`, `allow`; this one: `reload`. */
export const command = (name, action, body) => post(`v1/admin/catalogues/${encodeURIComponent(name)}:${action}`, body);

/** The catalogue being served, or null while there is none. */
export async function servedCatalogue() {
  return (await servedCatalogues()).catalogues[0] ?? null;
}

/** Items whose title holds `query`, the most popular first; for an empty one, the most popular of all. */
export async function findItems(query, limit, signal) {
  const parameters = new URLSearchParams({ query, limit });
  return (await fetchJson(`v1/items?${parameters}`, { signal })).items;
}

/** One item, with its attributes; of the catalogue's, by id. */
export function readItem(id) {
  return fetchJson(`v1/items/${encodeURIComponent(id)}`, {});
}

const post = (path, body, signal) =>
  fetchJson(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

export const recommend = (body, signal) => post("v1/recommendations", body, signal);

/** The same request for a POSIX shell; a key is left to its environment. */
export function asCurl(body) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  return [
    `curl ${quoted(new URL("v1/recommendations", document.baseURI).href)} \\`,
    "  -H 'Content-Type: application/json' \\",
    ...(key ? ['  -H "Authorization: Bearer $KEY" \\'] : []),
    `  -d ${quoted(JSON.stringify(body))}`,
  ].join("\n");
}
