// Sample users: histories made here of popular items that share an attribute's value. They are nobody's.
const ITEMS = 4;
const MOST = 8;

const isText = (value) => typeof value === "string";
const valuesOf = (item) =>
  Object.values(item.attributes).flatMap((value) => [value].flat().filter(isText));

/**
 * Users to try, as `{label, history}`: each liked popular items with one value in common; without such a value, there
 * is one, who liked what most did. `popular` holds items, the most popular first.
 */
export function sampleUsers(popular) {
  const withValue = new Map();
  for (const item of popular) {
    for (const value of new Set(valuesOf(item))) withValue.set(value, [...(withValue.get(value) ?? []), item]);
  }
  const values = [...withValue].filter(([, items]) => items.length >= ITEMS && items.length < popular.length);
  const common = values.sort(([, a], [, b]) => b.length - a.length).slice(0, MOST);
  if (!common.length) return popular.length ? [{ label: "Likes what most like", history: popular.slice(0, ITEMS) }] : [];
  // The rarest value chooses first: else the most popular items would be in everybody's history.
  const taken = new Set();
  const samples = common.reverse().map(([value, items]) => {
    const fresh = items.filter((item) => !taken.has(item));
    const history = [...fresh, ...items.filter((item) => taken.has(item))].slice(0, ITEMS);
    for (const item of history) taken.add(item);
    return { label: `Likes ${value}`, history };
  });
  return samples.sort((a, b) => (a.label < b.label ? -1 : 1));
}
