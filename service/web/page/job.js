// One job: its state and what can be asked of it, the map of slot accesses, curves, load of its shards, and what has happened.

import { Curve } from "./curves.js";
import { element, say } from "./elements.js";
import { bytes, counted, duration, number, share, when } from "./figures.js";
import { stateBadge } from "./jobs.js";
import { MapPanel } from "./map_panel.js";
import { Polling } from "./polling.js";
import { askJson } from "./session.js";

const KINDS = { restart: "Restart", cut_failed: "Cut failed", steps_skipped: "Step skipped", silent: "Silent process", reshard: "Moved", cut: "Cut" };
const ENDED = ["succeeded", "failed", "cancelled"];

export class JobView {
  constructor(place, id, refused) {
    Object.assign(this, { id, seen: 0, step: 0, since: 0, changes: [], events: [], cuts: [] });
    this.path = `/api/jobs/${id}`;
    document.title = `pkm: job ${id}`;
    this.title = element("h1", {}, id);
    this.badge = element("span", {});
    this.reason = element("p", { class: "quiet" });
    this.figures = element("dl", { class: "figures" });
    this.asks = element("div", { class: "asks" });
    this.said = element("p", { class: "problem", role: "status" });
    this.map = new MapPanel(this.path);
    this.curves = [
      new Curve("Loss", "", [{ name: "training", of: (record) => record.loss }]),
      new Curve("Perplexity", "", [
        { name: "training", of: (record) => Math.exp(Math.min(record.loss, 50)) },
        { name: "validation", of: (record) => record.validation_perplexity, dots: true },
      ], { logarithmic: true }),
      new Curve("Tokens per second", "", [{ name: "training", of: (record) => record.tokens_per_second }]),
      new Curve("Memory in use", " %", [
        { name: "last steps", of: (record) => record.memory_usage && 100 * record.memory_usage, dots: true },
        { name: "validation", of: (record) => record.validation_usage && 100 * record.validation_usage, dots: true },
      ]),
      new Curve("KL to uniform use", " nats", [{ name: "validation", of: (record) => record.validation_kl, dots: true }]),
    ];
    for (const curve of this.curves) curve.element.hidden = true;
    this.shards = element("div", { class: "shards" });
    this.history = element("ol", { class: "history" });
    this.shardsPanel = element("section", { "aria-labelledby": "shards", hidden: true }, element("h2", { id: "shards" }, "Load of the shards"), this.shards);
    place.append(
      element("p", { class: "back" }, element("a", { href: "#/" }, "All jobs")),
      element("div", { class: "head" }, this.title, this.badge, this.asks),
      this.reason,
      this.said,
      this.figures,
      element(
        "div",
        { class: "panels" },
        this.map.element,
        element("section", { class: "curves", "aria-labelledby": "curves" }, element("h2", { id: "curves" }, "Curves"), ...this.curves.map((curve) => curve.element)),
        this.shardsPanel,
        element("section", { "aria-labelledby": "history" }, element("h2", { id: "history" }, "What has happened"), this.history),
      ),
    );
    this.polling = new Polling((signal) => this.look(signal), refused);
  }

  async look(signal) {
    const told = await askJson(`${this.path}?changes_seen=${this.seen}`, { signal });
    this.seen = told.changes_seen;
    this.changes.push(...told.changes);
    this.showJob(told);
    for (let more = true; more; ) {
      const page = await askJson(`${this.path}/metrics?after_step=${this.step}`, { signal });
      more = page.more;
      if (page.records.length) this.step = page.records.at(-1).step;
      if (page.records.length) for (const curve of this.curves) curve.add(page.records);
      this.last = page.records.at(-1) ?? this.last;
      this.usage = page.records.findLast((record) => record.memory_usage != null)?.memory_usage ?? this.usage;
    }
    const events = (await askJson(`${this.path}/events?since=${this.since}`, { signal })).events;
    if (events.length) this.since = events.at(-1).time;
    this.events.push(...events);
    this.cuts = (await askJson(`${this.path}/cuts`, { signal })).cuts;
    this.showHistory();
    this.showFigures(told);
    await this.map.look(signal);
  }

  showJob({ job, shards }) {
    say(this.title, job.name);
    document.title = `${job.name} (${job.state}), pkm`;
    if (this.badge.textContent !== job.state) this.badge.replaceChildren(stateBadge(job.state));
    say(this.reason, job.reason);
    this.showAsks(job);
    this.showShards(shards);
  }

  showFigures({ job, progress }) {
    const last = this.last ?? {};
    const rows = [
      ["Step", progress ? `${progress.step.toLocaleString("en")} of ${progress.steps.toLocaleString("en")}` : this.step ? this.step.toLocaleString("en") : "–"],
      ["Loss", number(last.loss, 4)],
      ["Tokens per second", number(last.tokens_per_second)],
      ["Memory in use", share(progress?.memory_usage ?? this.usage)],
      ["Time left", ENDED.includes(job.state) ? "none" : duration(progress?.seconds_left)],
      ["Processes", `${counted(job.demand.shards, "shard")}, ${counted(job.demand.trainers, "trainer")}`],
    ];
    if (!this.figures.children.length) {
      const figure = (name, ...content) => element("div", {}, element("dt", {}, name), element("dd", {}, ...content));
      this.figures.append(figure("Job", element("code", {}, job.id)), ...rows.map(([name]) => figure(name)));
    }
    rows.forEach(([, text], at) => say(this.figures.children[at + 1].lastChild, text));
  }

  showAsks(job) {
    const can = ENDED.includes(job.state) || job.wanted === "cancel" ? [] : job.state === "paused" ? ["resume", "cancel"] : job.wanted === "pause" ? ["cancel"] : ["pause", "cancel"];
    if (this.can === can.join()) return;
    this.can = can.join();
    const names = { pause: "Pause", resume: "Resume", cancel: "Cancel" };
    const focused = this.asks.contains(document.activeElement);
    this.asks.replaceChildren(...can.map((wish) => element("button", { type: "button", onclick: () => this.wish(wish) }, names[wish])));
    if (focused) (this.asks.querySelector("button") ?? this.title).focus();
  }

  async wish(wish) {
    if (wish === "cancel" && !confirm("Cancel this job? It writes a last cut and ends.")) return;
    try {
      await askJson(`${this.path}/${wish}`, { method: "POST", body: { reason: "asked on the page" } });
      say(this.said, "");
      this.polling.wake?.();
    } catch (error) {
      say(this.said, error.message);
    }
  }

  showShards(shards) {
    this.shardsPanel.hidden = shards.length === 0;
    const most = Math.max(1, ...shards.map((shard) => shard.busy_cores));
    while (this.shards.children.length > shards.length) this.shards.lastChild.remove();
    shards.forEach((shard, at) => {
      let row = this.shards.children[at];
      if (!row) {
        row = element("div", { class: "shard" }, element("span"), element("meter", { min: 0, "aria-label": `Busy cores of shard ${shard.shard}` }), element("span", { class: "quiet" }));
        this.shards.append(row);
      }
      say(row.children[0], `Shard ${shard.shard}`);
      Object.assign(row.children[1], { max: most, value: shard.busy_cores });
      say(row.children[2], `${number(shard.busy_cores, 2)} cores, ${number(shard.calls_per_second, 2)} calls/s, ${bytes(shard.memory_bytes)}, ${shard.address}`);
    });
  }

  showHistory() {
    const states = this.changes.map(({ time, state, reason }) => ({ time, name: state, tone: state, text: reason }));
    const events = this.events.map(({ time, kind, step, message }) => ({ time, name: KINDS[kind] ?? kind, tone: kind, text: `step ${step}: ${message}` }));
    const cuts = this.cuts.map(({ step, written_at, bytes: size }) => ({ time: written_at, name: "Cut", tone: "cut", text: `step ${step}, ${bytes(size)}` }));
    const all = [...states, ...events, ...cuts].sort((one, other) => other.time - one.time);
    const told = JSON.stringify(all);
    if (told === this.toldHistory) return;
    this.toldHistory = told;
    this.history.replaceChildren(
      ...all.map(({ time, name, tone, text }) =>
        element("li", { class: tone }, element("time", { datetime: new Date(time * 1000).toISOString() }, when(time)), element("strong", {}, name), element("span", {}, text)),
      ),
    );
    const marks = [...this.events, ...this.cuts.map(({ step }) => ({ step, kind: "cut", message: "a cut is complete" }))];
    for (const curve of this.curves) curve.mark(marks);
  }

  stop() {
    this.polling.stop();
    this.map.stop();
    for (const curve of this.curves) curve.stop();
  }
}
