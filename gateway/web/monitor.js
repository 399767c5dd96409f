/** The monitor page: metrics of `/metrics`, read every two seconds, for use without Grafana. */

import { Reading, increase, quantile, rate } from "./exposition.js";
import { Gateway } from "./gateway.js";
import { catalogueFor, errorText, text, translate } from "./i18n.js";
import { preferredLanguage } from "./preferences.js";

const EVERY_MS = 2_000;
// Readings older than this are discarded.
const HISTORY_SECONDS = 600;
// Window of rates: shorter ones fluctuate with single answers.
const RATE_SECONDS = 10;
const SOURCES = ["engine", "store", "computed"];
const CHART = { width: 600, height: 120 };

const catalogue = catalogueFor(preferredLanguage());
document.documentElement.lang = catalogue.tag;
translate(document, catalogue);
document.title = `Samovar · ${text(catalogue, "monitorTitle")}`;

const say = (key, values) => text(catalogue, key, values);
const find = (id) => document.getElementById(id);
const readings = []; // of the last ten minutes, oldest first

const number = new Intl.NumberFormat(catalogue.tag, { maximumFractionDigits: 1 });
const percent = new Intl.NumberFormat(catalogue.tag, { style: "percent", maximumFractionDigits: 0 });

const plain = (value) => (value === null ? "–" : number.format(value));
const share = (part, whole) => (part === null || !whole ? "–" : percent.format(part / whole));
const seconds = (value) => (value === null ? "–" : say("seconds", { number: number.format(value) }));
const bytes = (value) => (value === null ? "–" : `${number.format(value / 2 ** 20)} MiB`);

/** Returns the newest reading at least `wanted` seconds before the last one, else the oldest reading. */
function ago(wanted) {
  const newest = readings.at(-1);
  return readings.findLast((reading) => newest.at - reading.at >= wanted) ?? readings[0];
}

function element(name, className, words = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = words;
  return made;
}

function showTiles(now) {
  const [soon, early] = [ago(RATE_SECONDS), readings[0]];
  const limit = now.sum("samovar_limit", { name: "queue_limit" });
  const ttft = (part) => quantile(early, now, "samovar_time_to_first_token_seconds", part);
  const prompt = now.sum("samovar_prompt_tokens_total");
  const computed = now.sum("samovar_prompt_tokens_total", { source: "computed" });
  const tiles = [
    ["waiting", plain(now.sum("samovar_requests_waiting")), limit === null ? "" : say("monitorOf", { limit: plain(limit) })],
    ["running", plain(now.sum("samovar_requests_running")), ""],
    ["tokens", plain(rate(soon, now, "samovar_generation_tokens_total")), say("monitorTokensUnit")],
    ["first", seconds(ttft(0.5)), say("monitorFirstMore", { most: seconds(ttft(0.95)) })],
    ["reused", prompt === null ? "–" : share(prompt - (computed ?? 0), prompt), say("monitorReusedMore")],
    ["connections", plain(now.sum("samovar_websocket_connections")), ""],
  ];
  find("tiles").replaceChildren(
    ...tiles.map(([key, value, more]) => {
      const tile = element("div", "tile");
      tile.dataset.tile = key;
      tile.append(
        element("p", "tile-name", say(`monitor_${key}`)),
        element("p", "tile-value", value),
        element("p", "tile-more", more),
      );
      return tile;
    }),
  );
}

function showChart() {
  const newest = readings.at(-1).at;
  const x = (at) => CHART.width * (1 - (newest - at) / HISTORY_SECONDS);
  const pairs = readings.slice(1).map((reading, index) => [readings[index], reading]);
  const lines = {
    tokens: pairs.map(([before, after]) => [after.at, rate(before, after, "samovar_generation_tokens_total") ?? 0]),
    waiting: readings.map((reading) => [reading.at, reading.sum("samovar_requests_waiting") ?? 0]),
  };
  find("chart").replaceChildren(
    ...Object.entries(lines).map(([name, points]) => {
      const top = Math.max(1, ...points.map(([, value]) => value));
      const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
      const y = (value) => CHART.height - 2 - (CHART.height - 8) * (value / top);
      line.setAttribute("class", `line-${name}`);
      line.setAttribute("points", points.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" "));
      line.setAttribute("vector-effect", "non-scaling-stroke");
      document.querySelector(`.legend-${name}`).textContent = say(`monitorLine_${name}`, { top: plain(top) });
      return line;
    }),
  );
}

function showEngines(now) {
  const soon = ago(RATE_SECONDS);
  const columns = {
    state: (of) => say(`engine_${now.all("samovar_engine_state", of).find(({ value }) => value === 1)?.labels.state}`),
    threads: (of) => plain(now.sum("samovar_engine_threads", of)),
    cpu: (of) => share(rate(soon, now, "samovar_engine_cpu_seconds_total", of), 1),
    memory: (of) => bytes(now.sum("samovar_engine_resident_bytes", of)),
    cells: (of) => `${plain(now.sum("samovar_kv_cells_used", of))} / ${plain(now.sum("samovar_kv_cells_total", of))}`,
    load: (of) => seconds(now.sum("samovar_engine_load_seconds", of)),
    restarts: (of) => plain(now.sum("samovar_engine_restarts_total", of)),
    unloads: (of) => plain(now.sum("samovar_engine_unloads_total", of)),
  };
  const row = (kind, cells) => {
    const made = document.createElement("tr");
    made.append(...cells.map((words) => element(kind, "", words)));
    return made;
  };
  const names = now.values("samovar_engine_state", "engine");
  find("engines").replaceChildren(
    row("th", ["engine", ...Object.keys(columns)].map((key) => say(`monitor_${key}`))),
    ...names.map((engine) => {
      const made = row("td", [engine, ...Object.values(columns).map((show) => show({ engine }))]);
      made.dataset.engine = engine;
      made.dataset.state = now.all("samovar_engine_state", { engine }).find(({ value }) => value === 1)?.labels.state;
      return made;
    }),
  );
}

function showFacts(id, facts) {
  find(id).replaceChildren(
    ...facts.flatMap(([name, value, key = ""]) => {
      const shown = element("dd", "", value);
      shown.dataset.fact = key;
      return [element("dt", "", name), shown];
    }),
  );
}

function showCache(now) {
  const tokens = (source) => now.sum("samovar_prompt_tokens_total", { source }) ?? 0;
  const parts = SOURCES.map((source) => {
    const part = element("span", `share-${source}`);
    part.style.flexGrow = tokens(source);
    return part;
  });
  find("share").replaceChildren(...parts);
  const ups = now.all("samovar_store_up");
  showFacts("cache", [
    ...SOURCES.map((source) => [say(`source_${source}`), plain(tokens(source)), source]),
    ...ups.map(({ labels, value }) => [say("monitorStore", labels), say(value === 1 ? "storeUp" : "storeDown"), "up"]),
    ...now.all("samovar_store_bytes_total").map(({ labels, value }) => [say("monitorBytes", labels), bytes(value)]),
  ]);
}

function showRequests(now) {
  const counted = new Map();
  for (const { labels, value } of now.all("samovar_requests_total")) {
    const key = labels.code || labels.status;
    const name = labels.code ? `${errorText(catalogue, labels.code)} (${labels.code})` : say(`status_${labels.status}`);
    counted.set(key, [name, (counted.get(key)?.[1] ?? 0) + value]);
  }
  const restarts = increase(readings[0], now, "samovar_engine_restarts_total") ?? 0;
  showFacts("requests", [
    ...[...counted].map(([key, [name, value]]) => [name, plain(value), key]),
    ...(restarts > 0 ? [[say("monitorRestartsLately"), plain(restarts)]] : []),
  ]);
}

function show(now) {
  showTiles(now);
  showChart();
  showEngines(now);
  showCache(now);
  showRequests(now);
}

function showState(state) {
  const words = find("status").querySelector("span");
  const label = say({ open: "monitorLive", lost: "reconnecting" }[state]);
  find("status").dataset.state = state;
  if (words.textContent !== label) words.textContent = label;
}

/** Advises the operator whose model knows no Chinese. An empty list means that the languages are unknown. */
async function advise() {
  const { languages = [] } = await new Gateway(() => null).page();
  find("advice").hidden = languages.length === 0 || languages.includes("zh");
}

async function read() {
  try {
    const answer = await fetch(new URL("monitor/metrics", document.baseURI), { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    readings.push(new Reading(await answer.text(), performance.now() / 1000));
    while (readings.at(-1).at - readings[0].at > HISTORY_SECONDS) readings.shift();
    show(readings.at(-1));
    showState("open");
  } catch (error) {
    if (!(error instanceof TypeError) && readings.length === 0) console.error(error);
    showState("lost");
  }
  setTimeout(read, EVERY_MS);
}

read();
advise();
