/** A bar chart with one bar per day, with axes, and the same figures as a table. */

import { element, plain, say } from "./account.js";
import { fillAxis, niceTop } from "./axes.js";

const SVG = "http://www.w3.org/2000/svg";
const SIZE = { width: 600, height: 140 };
const GAP = 0.25; // of a bar's width

/** Draws `days`, a list of `{date, tokens, requests}`, into a chart with axes. */
export function drawDays(chart, days, format) {
  const top = niceTop(Math.max(...days.map(({ tokens }) => tokens)));
  const svg = document.createElementNS(SVG, "svg");
  const width = SIZE.width / days.length;
  svg.setAttribute("viewBox", `0 0 ${SIZE.width} ${SIZE.height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.append(
    ...days.map(({ date, tokens }, index) => {
      const bar = document.createElementNS(SVG, "rect");
      const height = (SIZE.height * tokens) / top;
      bar.setAttribute("x", (index + GAP / 2) * width);
      bar.setAttribute("width", (1 - GAP) * width);
      bar.setAttribute("y", SIZE.height - height);
      bar.setAttribute("height", height);
      const title = document.createElementNS(SVG, "title");
      title.textContent = `${format(date)}: ${plain(tokens)}`;
      bar.append(title);
      return bar;
    }),
  );
  const ticks = element("div", "axis-y");
  fillAxis(ticks, [top, top / 2, 0].map(plain));
  const dates = element("div", "axis-x");
  fillAxis(dates, [days[0], days[Math.floor(days.length / 2)], days.at(-1)].map(({ date }) => format(date)));
  chart.replaceChildren(ticks, svg, dates);
}

/** Fills a table with the days, the newest first. */
export function listDays(table, days, format) {
  const head = element("tr");
  head.append(...["date", "tokensColumn", "requestsColumn"].map((key) => element("th", "", say(key))));
  table.replaceChildren(
    head,
    ...days.toReversed().map(({ date, tokens, requests }) => {
      const row = element("tr");
      row.dataset.date = date;
      row.append(...[format(date), plain(tokens), plain(requests)].map((words) => element("td", "", words)));
      return row;
    }),
  );
}
