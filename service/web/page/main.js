// The page: the list of jobs at #/, one job at #/jobs/ID, and a way in for who has no token.

import { element, say } from "./elements.js";
import { JobView } from "./job.js";
import { JobList } from "./jobs.js";
import { askJson, forgetToken, keepToken, takeToken } from "./session.js";

const content = document.getElementById("content");
const leave = document.getElementById("leave");
let view = null;

function show(event) {
  view?.stop();
  view = null;
  const token = takeToken();
  leave.hidden = !token;
  if (!token) return enter();
  const job = /^#\/jobs\/([A-Za-z0-9_-]+)$/.exec(location.hash);
  content.replaceChildren();
  view = job ? new JobView(content, job[1], refused) : new JobList(content, refused);
  if (event) content.focus({ preventScroll: true });
  if (event) scrollTo(0, 0);
}

function refused(error) {
  view?.stop();
  if (error.status === 401) {
    forgetToken();
    leave.hidden = true;
    return enter(error.message);
  }
  content.replaceChildren(
    element("h1", {}, "That can't be shown"),
    element("p", { role: "alert" }, error.message),
    element("p", {}, element("a", { href: "#/" }, "All jobs")),
  );
}

function enter(problem) {
  document.title = "pkm: token";
  const field = element("input", { id: "token", type: "password", autocomplete: "off", required: true, spellcheck: "false" });
  const told = element("p", { class: "problem", role: "alert" }, problem ?? "");
  const form = element(
    "form",
    { class: "door" },
    element("h1", {}, "Who asks?"),
    element("p", {}, "Run ", element("code", {}, "pkm ui"), " where you use pkm: it opens this page with your token. Or give the token here; it stays in this tab."),
    element("label", { for: "token" }, "Token"),
    field,
    told,
    element("button", { type: "submit" }, "Open"),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    keepToken(field.value.trim());
    try {
      await askJson("/api/jobs?page_size=1");
      show();
    } catch (error) {
      forgetToken();
      say(told, error.message);
      field.focus();
    }
  });
  content.replaceChildren(form);
  field.focus();
}

leave.addEventListener("click", () => {
  forgetToken();
  show();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // its address would be taken for one of a view
  content.focus();
});
addEventListener("hashchange", show);
show();
