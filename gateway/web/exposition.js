/** Parser for the part of Prometheus's text format that `/metrics` uses; rates and quantiles between two readings. */

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { n: "\n" };

/** One reading: samples by name. */
export class Reading {
  #samples = new Map(); // name → [{labels, value}]

  /**
   * @param {string} exposition body of `/metrics`
   * @param {number} at seconds of a monotonic clock
   */
  constructor(exposition, at) {
    this.at = at;
    for (const line of exposition.split("\n")) {
      const [, name, inside = "", number] = SAMPLE.exec(line) ?? [];
      if (name === undefined) continue;
      const labels = {};
      for (const [, key, raw] of inside.matchAll(LABEL)) {
        labels[key] = raw.replace(/\\(.)/g, (_, letter) => ESCAPES[letter] ?? letter);
      }
      if (!this.#samples.has(name)) this.#samples.set(name, []);
      this.#samples.get(name).push({ labels, value: numberOf(number) });
    }
  }

  /**
   * Returns the readings of `/monitor/history`, oldest first. They have only the series that the gateway keeps.
   *
   * @param {number} now seconds of the same clock as those of other readings
   */
  static history({ ages, series }, now) {
    return ages.map((age, index) => {
      const reading = new Reading("", now - age);
      for (const { name, labels, values } of series) {
        if (values[index] === null) continue;
        if (!reading.#samples.has(name)) reading.#samples.set(name, []);
        reading.#samples.get(name).push({ labels, value: values[index] });
      }
      return reading;
    });
  }

  /** Returns the samples named `name` that have these labels, as `{labels, value}`. */
  all(name, wanted = {}) {
    const matches = ({ labels }) => Object.entries(wanted).every(([key, value]) => labels[key] === value);
    return (this.#samples.get(name) ?? []).filter(matches);
  }

  /** Returns the sum of these samples; null if there are none, since a missing metric is not zero. */
  sum(name, wanted = {}) {
    const samples = this.all(name, wanted);
    return samples.length === 0 ? null : samples.reduce((sum, { value }) => sum + value, 0);
  }

  /** Returns the distinct values of a label, in order of appearance. */
  values(name, label) {
    return [...new Set(this.all(name).map(({ labels }) => labels[label]))];
  }
}

/** Returns the increase of a counter; a counter that fell was reset by a restart of the gateway. */
export function increase(before, after, name, wanted = {}) {
  const [old, now] = [before.sum(name, wanted), after.sum(name, wanted)];
  if (old === null || now === null) return null;
  return now >= old ? now - old : now;
}

/** Returns the increase of a counter per second. */
export function rate(before, after, name, wanted = {}) {
  const rise = increase(before, after, name, wanted);
  return rise === null || after.at <= before.at ? null : rise / (after.at - before.at);
}

/**
 * Returns the quantile `share` of a histogram's observations between two readings; null if there are none. Interpolates
 * linearly within a bucket, as Prometheus's `histogram_quantile` does.
 */
export function quantile(before, after, name, share) {
  const bounds = [...new Set(after.all(`${name}_bucket`).map(({ labels }) => labels.le))];
  const buckets = bounds
    .map((le) => ({ bound: numberOf(le), count: increase(before, after, `${name}_bucket`, { le }) ?? 0 }))
    .sort((one, other) => one.bound - other.bound);
  const total = buckets.at(-1)?.count ?? 0;
  if (total === 0) return null;
  const index = buckets.findIndex(({ count }) => count >= share * total);
  const { bound, count } = buckets[index];
  const lower = index === 0 ? { bound: 0, count: 0 } : buckets[index - 1];
  if (bound === Infinity) return lower.bound;
  return lower.bound + ((bound - lower.bound) * (share * total - lower.count)) / (count - lower.count);
}

function numberOf(text) {
  return { "+Inf": Infinity, "-Inf": -Infinity }[text] ?? Number(text);
}
