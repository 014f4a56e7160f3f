// The map of a job, of the training's last steps or of the held-out text at its end, and asking for it when it has changed.

import { element, say } from "./elements.js";
import { HeatMap } from "./heat_map.js";
import { ask, Refused } from "./session.js";

const WHAT = { training: "Now, while it trains", "held-out": "On held-out text" };

export class MapPanel {
  constructor(path) {
    this.path = path;
    this.of = "training";
    this.tag = null;
    this.map = new HeatMap("reads");
    this.map.element.hidden = true;
    this.caption = element("p", { class: "quiet" }, "The map comes with the first steps.");
    const choice = (of) =>
      element("label", { class: "choice" }, element("input", { type: "radio", name: "of", value: of, checked: of === this.of, onchange: () => this.choose(of) }), element("span", {}, WHAT[of]));
    this.element = element(
      "section",
      { class: "map-panel", "aria-labelledby": "map" },
      element("h2", { id: "map" }, "Slot accesses"),
      element("fieldset", { class: "filters" }, element("legend", { class: "unseen" }, "Which accesses"), choice("training"), choice("held-out")),
      this.caption,
      this.map.element,
    );
  }

  async choose(of) {
    Object.assign(this, { of, tag: null });
    this.map.unit = of === "training" ? "reads" : "weight";
    try {
      await this.look();
    } catch (error) {
      say(this.caption, error.message);
    }
  }

  async look(signal) {
    const { of } = this;
    let response;
    try {
      response = await ask(`${this.path}/map?of=${of}&side=1024`, { signal, tag: this.tag });
    } catch (error) {
      if (!(error instanceof Refused && error.status === 404)) throw error;
      if (of !== this.of) return;
      this.map.element.hidden = true;
      say(this.caption, error.message);
      return;
    }
    if (response.status === 304 || of !== this.of) return;
    const counts = new Float32Array(await response.arrayBuffer());
    if (of !== this.of) return;
    const figure = (name) => Number(response.headers.get(`Map-${name}`));
    this.tag = response.headers.get("ETag");
    this.map.element.hidden = false;
    this.map.show(counts, figure("Side"), figure("Sub-Keys"));
    const slots = `${figure("Sub-Keys").toLocaleString("en")} × ${figure("Sub-Keys").toLocaleString("en")} slots`;
    const told = of === "training" ? `reads in steps ${(figure("Since") + 1).toLocaleString("en")} to ${figure("Step").toLocaleString("en")}` : "weight of reads on the test text";
    say(this.caption, `${slots}: ${told}. First sub-key down, second across.`);
  }

  stop() {
    this.map.stop();
  }
}
