// The token, and asking the service with it. The token comes behind the # of the address, which goes to no server; it is kept
// for this tab alone and taken out of the address at once.

const KEY = "pkm-token";

export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

export class Unreachable extends Error {}

export function takeToken() {
  const found = /^#token=([^&]+)$/.exec(location.hash);
  if (found) {
    keepToken(decodeURIComponent(found[1]));
    history.replaceState(null, "", location.pathname + "#/");
  }
  return sessionStorage.getItem(KEY);
}

export function keepToken(token) {
  sessionStorage.setItem(KEY, token);
}

export function forgetToken() {
  sessionStorage.removeItem(KEY);
}

export async function ask(path, { method = "GET", body, tag, signal } = {}) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEY)}` };
  if (tag) headers["If-None-Match"] = tag;
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable("The service does not answer.");
  }
  if (response.ok || response.status === 304) return response;
  const said = await response.json().catch(() => ({}));
  throw new Refused(response.status, said.error ?? `The service answered with ${response.status}.`);
}

export async function askJson(path, options) {
  return (await ask(path, options)).json();
}
