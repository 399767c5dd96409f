/** The monitor page: metrics of `/metrics`, read every two seconds, for use without Grafana. */

import { fillAxis, niceTop } from "./axes.js";
import { Reading, increase, quantile, rate } from "./exposition.js";
import { Gateway } from "./gateway.js";
import { catalogueFor, errorText, text, translate } from "./i18n.js";
import { preferredLanguage } from "./preferences.js";

const EVERY_MS = 2_000;
const USERS_EVERY_MS = 5_000;
// Readings older than this are discarded.
const HISTORY_SECONDS = 3_600;
// Of readings older than this, one is kept every SPARSE_SECONDS, as the gateway does.
const RECENT_SECONDS = 30;
const SPARSE_SECONDS = 10;
// Window of rates: shorter ones fluctuate with single answers.
const RATE_SECONDS = 10;
const SOURCES = ["engine", "store", "computed"];
const CHART = { width: 600, height: 120 };
const AXIS_MINUTES = [60, 40, 20];

const catalogue = await catalogueFor(preferredLanguage());
document.documentElement.lang = catalogue.tag;
translate(document, catalogue);
document.title = `Samovar · ${text(catalogue, "monitorTitle")}`;

const say = (key, values) => text(catalogue, key, values);
const find = (id) => document.getElementById(id);
const readings = []; // of the last hour, oldest first

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

/** Draws lines, a list of points `[at, value]` by name, with axes: the last hour, and from 0 to a round number. */
function drawPlot(plot, lines) {
  const newest = readings.at(-1).at;
  const top = niceTop(Math.max(...Object.values(lines).flatMap((points) => points.map(([, value]) => value))));
  const x = (at) => CHART.width * (1 - (newest - at) / HISTORY_SECONDS);
  const y = (value) => CHART.height * (1 - value / top);
  const shape = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.setAttribute("vector-effect", "non-scaling-stroke");
    return made;
  };
  plot.querySelector("svg").replaceChildren(
    ...[top, top / 2].map((value) => shape("line", { x1: 0, x2: CHART.width, y1: y(value), y2: y(value) })),
    ...Object.entries(lines).map(([name, points]) =>
      shape("polyline", {
        class: `line-${name}`,
        points: points.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" "),
      }),
    ),
  );
  fillAxis(plot.querySelector(".axis-y"), [top, top / 2, 0].map(plain));
  fillAxis(plot.querySelector(".axis-x"), [...AXIS_MINUTES.map((minutes) => say("monitorAgo", { minutes })), say("monitorAxisNow")]);
}

function showCharts() {
  const gauge = (name) => readings.map((reading) => [reading.at, reading.sum(name) ?? 0]);
  // Each rate is over RATE_SECONDS at least, however close together the readings are.
  const tokens = readings.map((reading, index) => {
    const before = readings.slice(0, index).findLast(({ at }) => reading.at - at >= RATE_SECONDS - 1);
    return [reading.at, (before && rate(before, reading, "samovar_generation_tokens_total")) ?? 0];
  });
  drawPlot(find("plot-tokens"), { tokens });
  drawPlot(find("plot-requests"), {
    running: gauge("samovar_requests_running"),
    waiting: gauge("samovar_requests_waiting"),
  });
}

function rowOf(kind, cells) {
  const made = document.createElement("tr");
  made.append(...cells.map((words) => element(kind, "", words)));
  return made;
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
  const names = now.values("samovar_engine_state", "engine");
  find("engines").replaceChildren(
    rowOf("th", ["engine", ...Object.keys(columns)].map((key) => say(`monitor_${key}`))),
    ...names.map((engine) => {
      const made = rowOf("td", [engine, ...Object.values(columns).map((show) => show({ engine }))]);
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
  showCharts();
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

/** Forgets readings that are too old, or that are recent no more and close to the one before. */
function forgetReadings() {
  const newest = readings.at(-1).at;
  while (newest - readings[0].at > HISTORY_SECONDS) readings.shift();
  const index = readings.findIndex(({ at }) => newest - at < RECENT_SECONDS);
  if (index > 2 && readings[index - 1].at - readings[index - 2].at < SPARSE_SECONDS - 1) readings.splice(index - 1, 1);
}

/** Shows what each user does, if the gateway knows users. */
async function showUsers() {
  const data = (await load("monitor/users"))?.data ?? [];
  const columns = {
    user: ({ name }) => name,
    running: ({ running }) => plain(running),
    waiting: ({ waiting }) => plain(waiting),
    connections: ({ connections }) => plain(connections),
    requestsToday: ({ requests_today: requests }) => plain(requests),
    tokensToday: ({ tokens_today: tokens, tokens_per_day: most }) =>
      plain(tokens) + (most === null ? "" : ` / ${plain(most)}`),
  };
  find("by-user").hidden = data.length === 0;
  find("users").replaceChildren(
    rowOf("th", Object.keys(columns).map((key) => say(`monitor_${key}`))),
    ...data.map((user) => rowOf("td", Object.values(columns).map((show) => show(user)))),
  );
}

/** Begins with what the gateway has kept of the last hour. */
async function begin() {
  const history = await load("monitor/history");
  if (history !== null) readings.push(...Reading.history(history, performance.now() / 1000));
  read();
}

/** Returns a JSON document of the gateway; null if it does not respond: the status shows that. */
async function load(path) {
  try {
    const answer = await fetch(new URL(path, document.baseURI), { cache: "no-store" });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

async function read() {
  try {
    const answer = await fetch(new URL("monitor/metrics", document.baseURI), { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    readings.push(new Reading(await answer.text(), performance.now() / 1000));
    forgetReadings();
    show(readings.at(-1));
    showState("open");
  } catch (error) {
    if (!(error instanceof TypeError) && readings.length === 0) console.error(error);
    showState("lost");
  }
  setTimeout(read, EVERY_MS);
}

begin();
advise();
showUsers();
setInterval(showUsers, USERS_EVERY_MS);
