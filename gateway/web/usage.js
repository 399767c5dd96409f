/** The usage page: what the reader has used, and what is left of the daily allowance. */

import { Account, bytes, catalogue, dateOf, element, find, plain, requests, say, showTiles, timeOf, translatePage } from "./account.js";
import { drawDays, listDays } from "./bars.js";

const DAYS = 30;
const EVERY_MS = 30_000;

translatePage("usageTitle");
const shortDate = new Intl.DateTimeFormat(catalogue.tag, { month: "short", day: "numeric", timeZone: "UTC" });
const format = (date) => shortDate.format(new Date(`${date}T00:00Z`));
const account = new Account(show);

async function show() {
  const me = await account.open("v1/me");
  if (me === null) return;
  const usage = await account.request("GET", `v1/me/usage?days=${DAYS}`);
  if (!usage.ok) return;
  const days = usage.body.data;
  const sum = (unit) => days.reduce((total, day) => total + day[unit], 0);
  const hasAllowance = me.tokens_per_day !== null;
  showTiles([
    ["today", say("today"), plain(me.tokens_today), requests(me.requests_today)],
    [
      "left",
      say("leftToday"),
      hasAllowance ? plain(me.tokens_left_today) : "–",
      hasAllowance
        ? `${say("ofAllowance", { number: plain(me.tokens_per_day) })} · ${say("newDay", { time: timeOf(me.day_ends_at) })}`
        : say("noAllowance"),
    ],
    ["month", say("last30"), plain(sum("tokens")), requests(sum("requests"))],
    ["storage", say("storage"), bytes(me.storage.bytes), say("ofAllowance", { number: bytes(me.storage.limit) })],
  ]);
  drawDays(find("chart"), days, format);
  listDays(find("days"), days, format);
  showFacts(me);
}

function showFacts(me) {
  const facts = [
    ["name", me.name + (me.admin ? ` (${say("adminYes")})` : "")],
    ["id", me.id],
    ["expires", dateOf(me.expires_at, say("never"))],
    ["allTime", `${plain(me.tokens)} · ${requests(me.requests)}`],
    ["perMinute", me.tokens_per_minute === null ? say("none") : plain(me.tokens_per_minute)],
    ["inFlight", plain(me.concurrency)],
  ];
  find("account").replaceChildren(
    ...facts.flatMap(([key, value]) => {
      const shown = element("dd", "", value);
      shown.dataset.fact = key;
      return [element("dt", "", say(key)), shown];
    }),
  );
  find("to-admin").hidden = !me.admin;
}

await show();
setInterval(() => document.hidden || find("board").hidden || show(), EVERY_MS);
