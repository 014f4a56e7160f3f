// Asking again and again while the page is seen. A lost connection is told, tried less often, and goes on where it was.

import { say } from "./elements.js";
import { Refused, Unreachable } from "./session.js";

const EVERY_MS = 1500;
const PATIENCE_MS = 15000;

export class Polling {
  // `look` asks and shows; `refused` is told of an answer that another try would not change.
  constructor(look, refused) {
    this.controller = new AbortController();
    this.again = () => !document.hidden && this.wake?.();
    document.addEventListener("visibilitychange", this.again);
    this.run(look, refused);
  }

  async run(look, refused) {
    const { signal } = this.controller;
    const notice = document.getElementById("connection");
    let pause = EVERY_MS;
    while (!signal.aborted) {
      if (!document.hidden) {
        try {
          await look(signal);
          pause = EVERY_MS;
          notice.hidden = true;
        } catch (error) {
          if (signal.aborted) return;
          const lost = error instanceof Unreachable || (error instanceof Refused && error.status >= 429);
          if (error instanceof Refused && !lost) {
            notice.hidden = true;
            refused(error);
            return;
          }
          if (!lost) console.error(error);
          say(notice, lost ? `${error.message} Trying again.` : "The page failed to show an answer. Trying again.");
          notice.hidden = false;
          pause = Math.min(pause * 1.5, PATIENCE_MS);
        }
      }
      await new Promise((resolve) => {
        this.wake = resolve;
        setTimeout(resolve, pause);
      });
    }
  }

  stop() {
    this.controller.abort();
    document.removeEventListener("visibilitychange", this.again);
    this.wake?.();
  }
}
