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
export const sampleUsers = (popular) => samplePeople(popular, 1);

/** The same, up to `rounds` of each value, as long as there are items that nobody has yet. */
export function samplePeople(popular, rounds) {
  const withValue = new Map();
  for (const item of popular) {
    for (const value of new Set(valuesOf(item))) withValue.set(value, [...(withValue.get(value) ?? []), item]);
  }
  const values = [...withValue].filter(([, items]) => items.length >= ITEMS && items.length < popular.length);
  const common = values.sort(([, a], [, b]) => b.length - a.length).slice(0, MOST);
  if (!common.length) return likingWhatMostLike(popular, rounds);
  // The rarest value chooses first: else the most popular items would be in everybody's history.
  const taken = new Set();
  const people = [];
  common.reverse();
  for (let round = 1; round <= rounds; round++) {
    for (const [value, items] of common) {
      const fresh = items.filter((item) => !taken.has(item));
      if (round > 1 && fresh.length < ITEMS) continue;
      const history = [...fresh, ...items.filter((item) => taken.has(item))].slice(0, ITEMS);
      for (const item of history) taken.add(item);
      people.push({ label: round === 1 ? `Likes ${value}` : `Likes ${value}, ${round}`, history });
    }
  }
  return people.sort((a, b) => (a.label < b.label ? -1 : 1));
}

function likingWhatMostLike(popular, rounds) {
  const people = [];
  // Half of a small catalogue: something must be left to recommend.
  const size = Math.min(ITEMS, Math.ceil(popular.length / 2));
  for (let from = 0; from < popular.length && people.length < rounds; from += size) {
    const label = from ? `Likes what many like, ${people.length + 1}` : "Likes what most like";
    people.push({ label, history: popular.slice(from, from + size) });
  }
  return people;
}
