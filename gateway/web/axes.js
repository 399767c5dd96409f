/** Axes of charts: round numbers, and their labels. */

/** Returns the smallest of 1, 2 and 5 times a power of ten that is not smaller than `value`, and at least 1. */
export function niceTop(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= value);
}

/** Fills an axis with labels at equal distances, the first at its start. */
export function fillAxis(axis, labels) {
  axis.replaceChildren(
    ...labels.map((words) => {
      const label = document.createElement("span");
      label.textContent = words;
      return label;
    }),
  );
}
