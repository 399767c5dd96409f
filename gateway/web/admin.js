/** The administration page: users, their keys, limits and usage, and the state of the engines. */

import { Account, bytes, catalogue, dateOf, element, find, plain, requests, say, showTiles, translatePage } from "./account.js";
import { Sheets } from "./admin_sheets.js";

const EVERY_MS = 15_000;
const LIMITS = ["tokens_per_day", "tokens_per_minute", "concurrency"];
const DAY_SECONDS = 86_400;

translatePage("adminTitle");
const account = new Account(show);
const sheets = new Sheets();
let me = ""; // id of the reader
let shown = ""; // the table as it was last filled

async function show() {
  const users = await account.open("v1/admin/users");
  if (users === null) return;
  const [usage, engines, own] = await Promise.all(
    ["v1/admin/usage", "v1/admin/engines", "v1/me"].map((path) => account.request("GET", path)),
  );
  if (!usage.ok || !engines.ok || !own.ok) return;
  me = own.body.id;
  const sums = new Map(usage.body.data.map(({ id, periods }) => [id, periods["30_days"]]));
  const month = [...sums.values()].reduce((sum, { tokens }) => sum + tokens, 0);
  const total = (unit) => users.data.reduce((sum, user) => sum + user[unit], 0);
  showTiles([
    ["users", say("users"), plain(users.data.filter(({ state }) => state === "valid").length), ""],
    ["today", say("today"), plain(total("tokens_today")), requests(total("requests_today"))],
    ["month", say("last30"), plain(month), ""],
    ["storage", say("storage"), bytes(total("storage_bytes")), ""],
  ]);
  showUsers(users.data, sums);
  showEngines(engines.body.data);
}

function showUsers(users, sums) {
  const columns = ["name", "keyState", "today", "last30", "allTime", "lastUsed", "connections", "storage", "actions"];
  const rows = users.map((user) => ({
    user,
    cells: [
      user.name + (user.admin ? ` (${say("adminYes")})` : ""),
      say(`state_${user.state}`) + (user.expires_at === null || user.state !== "valid" ? "" : ` · ${dateOf(user.expires_at)}`),
      plain(user.tokens_today) + (user.tokens_per_day === null ? "" : ` ${say("ofAllowance", { number: plain(user.tokens_per_day) })}`),
      plain(sums.get(user.id)?.tokens ?? 0),
      plain(user.tokens),
      dateOf(user.last_used),
      plain(user.connections),
      bytes(user.storage_bytes),
    ],
  }));
  const state = JSON.stringify(rows);
  if (state === shown) return;
  shown = state;
  const focused = document.activeElement?.closest("[data-act]");
  const place = focused && `[data-id="${focused.closest("tr").dataset.id}"] [data-act="${focused.dataset.act}"]`;
  const head = element("tr");
  head.append(...columns.map((key) => element("th", "", say(key))));
  find("users").replaceChildren(head, ...rows.map(({ user, cells }) => rowOf(user, cells, columns)));
  if (place) find("users").querySelector(place)?.focus();
}

function rowOf(user, cells, columns) {
  const row = element("tr");
  row.dataset.id = user.id;
  row.dataset.name = user.name;
  row.dataset.state = user.state;
  row.append(
    ...cells.map((words, index) => {
      const cell = element("td", "", words);
      cell.dataset.label = say(columns[index]);
      return cell;
    }),
    actionsOf(user),
  );
  return row;
}

function actionsOf(user) {
  const cell = element("td", "user-actions");
  const isOwn = user.id === me;
  const acts = user.state === "revoked" ? [] : [["editLimits", editLimits], ["rotateKey", rotate], ["revokeKey", revoke]];
  for (const [key, act] of [...acts, ["deleteUser", remove]]) {
    if (isOwn && (act === revoke || act === remove)) continue; // the reader would lose access
    const button = element("button", "plain", say(key));
    button.type = "button";
    button.dataset.act = key;
    button.setAttribute("aria-label", say("of", { action: say(key), name: user.name }));
    button.addEventListener("click", () => act(user));
    cell.append(button);
  }
  return cell;
}

function showEngines([{ id, context_length: context, engines }]) {
  find("model").textContent = say("enginesOf", { model: id, context: plain(context) });
  const head = element("tr");
  head.append(...["engineName", "monitor_state"].map((key) => element("th", "", say(key))));
  const rows = engines.map(({ name, state }) => {
    const row = element("tr");
    row.dataset.state = state;
    row.append(element("td", "", name), element("td", "", say(`engine_${state}`)));
    return row;
  });
  find("engines").replaceChildren(head, ...rows);
}

/** Sends an action; returns its body, or the reason of the refusal as a text. */
async function act(method, path, body) {
  const answer = await account.request(method, path, body);
  if (answer.ok) return answer.body;
  return answer.status === 0 ? say("unreachable") : refusal(answer.body?.error ?? {}, answer.status);
}

/** Words a refusal for the reader; the gateway's own text is for programmers, and English. */
function refusal({ code, param }, status) {
  const subject = [...LIMITS, "weight"].includes(param) ? "limit" : param;
  const key = [`refused_${status}`, `refused_${code}`, `refused_${subject}`].find((known) => known in catalogue);
  return key ? say(key) : say("refused", { code: code ?? status });
}

async function done(name) {
  find("notice").textContent = say("saved", { name });
  await show();
}

const addressOf = ({ id }) => `v1/admin/users/${encodeURIComponent(id)}`;
const numberOf = (field) => (field.value === "" ? null : Number(field.value));
const limitsOf = (fields) => ({
  ...Object.fromEntries(LIMITS.map((name) => [name, numberOf(fields[name])])),
  weight: Number(fields.weight.value),
});

function add() {
  const fresh = { tokens_per_day: null, tokens_per_minute: null, concurrency: null, weight: 1 };
  sheets.edit(say("addUser"), say("add"), fresh, true, async (fields) => {
    const days = numberOf(fields.expires);
    const expires = days === null ? null : Math.floor(Date.now() / 1000) + days * DAY_SECONDS;
    const name = fields.name.value.trim();
    const made = await act("POST", "v1/admin/users", { name, admin: fields.admin.checked, expires_at: expires, ...limitsOf(fields) });
    if (typeof made === "string") return made;
    sheets.showKey(say("newKeyOf", { name }), made.key);
    await done(name);
    return "";
  });
}

function editLimits(user) {
  sheets.edit(say("limitsOf", user), say("save"), user, false, async (fields) => {
    const changed = await act("POST", addressOf(user), limitsOf(fields));
    if (typeof changed === "string") return changed;
    await done(user.name);
    return "";
  });
}

function rotate(user) {
  sheets.confirm(say("confirmRotate", user), say("rotateKey"), "", async () => {
    const made = await act("POST", `${addressOf(user)}/rotate`, {});
    if (typeof made === "string") return made;
    if (user.id === me) account.replaceKey(made.key);
    sheets.showKey(say("newKeyOf", user), made.key);
    await done(user.name);
    return "";
  });
}

function revoke(user) {
  sheets.confirm(say("confirmRevoke", user), say("revokeKey"), "", async () => {
    const revoked = await act("POST", `${addressOf(user)}/revoke`);
    if (typeof revoked === "string") return revoked;
    await done(user.name);
    return "";
  });
}

function remove(user) {
  sheets.confirm(say("confirmDelete", user), say("deleteUser"), user.name, async () => {
    const removed = await act("DELETE", addressOf(user));
    if (typeof removed === "string") return removed;
    await done(user.name);
    return "";
  });
}

/** Saves the usage as a file. The request needs the key in a header, which a link cannot send. */
async function download() {
  const answer = await account.request("GET", "v1/admin/usage.csv");
  if (!answer.ok) return;
  const link = element("a");
  link.href = URL.createObjectURL(answer.body);
  link.download = "samovar-usage.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), EVERY_MS);
}

find("add").addEventListener("click", add);
find("download").addEventListener("click", download);
await show();
setInterval(() => document.hidden || find("board").hidden || sheets.isOpen || show(), EVERY_MS);
