// The list of jobs, newest first, with a filter by state and by name.

import { element, say } from "./elements.js";
import { counted, duration, when } from "./figures.js";
import { Polling } from "./polling.js";
import { askJson } from "./session.js";

const GROUPS = {
  all: [],
  active: ["starting", "running", "recovering", "pausing"],
  waiting: ["queued", "paused"],
  ended: ["succeeded", "failed", "cancelled"],
};
const PAGE = 50;

export function stateBadge(state) {
  return element("span", { class: `state ${state}` }, state);
}

export class JobList {
  constructor(place, refused) {
    document.title = "pkm: jobs";
    this.group = "all";
    this.pages = 1;
    this.rows = new Map();
    this.count = element("p", { class: "quiet", "aria-live": "polite" });
    this.body = element("tbody");
    this.more = element("button", { type: "button", hidden: true, onclick: () => this.showMore() }, "Older jobs");
    this.search = element("input", { id: "search", type: "search", placeholder: "Name or beginning of an id", oninput: () => this.filter() });
    place.append(
      element("h1", {}, "Jobs"),
      element(
        "div",
        { class: "filters" },
        element("fieldset", {}, element("legend", { class: "unseen" }, "State"), ...Object.keys(GROUPS).map((group) => this.choice(group))),
        element("label", { class: "unseen", for: "search" }, "Filter by name or id"),
        this.search,
      ),
      this.count,
      element(
        "table",
        { class: "jobs" },
        element("caption", { class: "unseen" }, "Jobs, the newest first"),
        element("thead", {}, element("tr", {}, ...["Name", "State", "Job", "Submitted", "Took", "Reason"].map((name) => element("th", { scope: "col" }, name)))),
        this.body,
      ),
      this.more,
    );
    this.polling = new Polling((signal) => this.look(signal), refused);
  }

  choice(group) {
    const radio = element("input", { type: "radio", name: "group", value: group, checked: group === this.group, onchange: () => this.choose(group) });
    return element("label", { class: "choice" }, radio, element("span", {}, group));
  }

  choose(group) {
    this.group = group;
    this.pages = 1;
    this.polling.wake?.();
  }

  showMore() {
    this.pages += 1;
    this.polling.wake?.();
  }

  async look(signal) {
    const { group } = this;
    const states = GROUPS[group].map((state) => `&state=${state}`).join("");
    let jobs = [];
    let next = "";
    for (let page = 0; page < this.pages && (page === 0 || next); page++) {
      const told = await askJson(`/api/jobs?page_size=${PAGE}&page=${next}${states}`, { signal });
      jobs = jobs.concat(told.jobs);
      next = told.next_page;
    }
    if (group !== this.group) return;
    this.jobs = jobs;
    this.more.hidden = !next;
    this.show();
    const load = await askJson("/api/cluster", { signal });
    const hosts = load.hosts.reduce((sum, host) => sum + host.cpus, 0);
    const text = `${load.taken.cpus} of ${hosts} CPUs taken, ${load.jobs_active} active, ${load.jobs_waiting} waiting`;
    say(document.getElementById("cluster"), text);
  }

  show() {
    const ids = new Set(this.jobs.map((job) => job.id));
    for (const [id, row] of this.rows) {
      if (!ids.has(id)) {
        row.remove();
        this.rows.delete(id);
      }
    }
    for (const [index, job] of this.jobs.entries()) {
      const row = this.rows.get(job.id) ?? element("tr");
      this.rows.set(job.id, row);
      const told = JSON.stringify(job);
      if (row.told !== told || job.started_at) this.fill(row, job);
      row.told = told;
      if (this.body.children[index] !== row) this.body.insertBefore(row, this.body.children[index] ?? null);
    }
    this.filter();
  }

  fill(row, job) {
    const took = job.started_at ? duration((job.ended_at ?? Date.now() / 1000) - job.started_at) : "–";
    if (row.told === JSON.stringify(job)) return say(row.cells[4], took);
    const wish = job.wanted === "cancel" && !job.ended_at ? " (cancel asked)" : "";
    const cells = [
      element("a", { href: `#/jobs/${job.id}` }, job.name),
      element("span", {}, stateBadge(job.state), wish),
      element("code", {}, job.id),
      when(job.submitted_at),
      took,
      job.reason.split("\n")[0],
    ];
    const names = ["Name", "State", "Job", "Submitted", "Took", "Reason"];
    const focused = row.contains(document.activeElement);
    row.replaceChildren(...cells.map((cell, at) => element("td", { "data-name": names[at] }, cell)));
    if (focused) row.querySelector("a").focus();
  }

  filter() {
    const wanted = this.search.value.trim().toLowerCase();
    let shown = 0;
    for (const job of this.jobs ?? []) {
      const fits = job.name.toLowerCase().includes(wanted) || job.id.startsWith(wanted);
      this.rows.get(job.id).hidden = !fits;
      shown += fits;
    }
    const none = this.jobs?.length || wanted || this.group !== "all" ? "No job fits." : "No jobs yet: pkm submit JOB.yaml makes one.";
    say(this.count, shown ? counted(shown, "job") : none);
  }

  stop() {
    this.polling.stop();
  }
}
