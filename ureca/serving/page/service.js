"use strict";

// The service, as a browser talks to it: requests with the image as a file, answers in JSON or as events.

// Why a request did not get what it asked for.
class Refused extends Error {
  constructor(status, { message, type = "", param = null }, retryAfter) {
    super(message);
    this.status = status; // 0: there was none
    this.type = type;
    this.param = param;
    this.retryAfter = retryAfter; // seconds, or null
  }

  static async of(answer) {
    let problem = { message: `the service answered ${answer.status} ${answer.statusText}` };
    try {
      problem = (await answer.json()).error ?? problem;
    } catch {
      // Not ours: something between this page and the service answered.
    }
    const wait = Number.parseInt(answer.headers.get("Retry-After") ?? "", 10);
    return new Refused(answer.status, problem, Number.isNaN(wait) ? null : wait);
  }
}

class Service {
  // askForToken: called with the reason when the service wants a token, resolves to one, or to null: given up.
  constructor(askForToken) {
    this.askForToken = askForToken;
    this.token = null; // in memory only
    this.asking = null;
  }

  async model() {
    const answer = await this.#send("v1/models", {});
    return (await answer.json()).data[0].id;
  }

  async regions(image, request, signal) {
    return (await this.#post("v1/regions", image, request, signal)).json();
  }

  // Yields [event, data] of a stream of captions.
  async *captions(image, request, signal) {
    const answer = await this.#post("v1/captions", image, { ...request, stream: true }, signal);
    for await (const [event, data] of eventsOf(answer.body)) {
      if (event === "error") throw new Refused(0, data.error, data.error.retry_after_s);
      yield [event, data];
      if (event === "done") return;
    }
    throw new Refused(0, { message: "the connection ended before the captions did" }, null);
  }

  #post(path, image, request, signal) {
    const body = new FormData();
    body.append("image", image, image.name);
    body.append("request", JSON.stringify(request));
    return this.#send(path, { method: "POST", body, signal });
  }

  async #send(path, options) {
    for (;;) {
      const token = this.token;
      const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
      const answer = await this.#fetch(path, { ...options, headers });
      if (answer.ok) return answer;
      const refused = await Refused.of(answer);
      if (answer.status !== 401) throw refused;
      if (token !== this.token) continue; // another request has got one meanwhile
      this.asking ??= this.askForToken(refused.message).finally(() => { this.asking = null; });
      const given = await this.asking;
      if (given === null) throw refused;
      this.token = given;
      options.signal?.throwIfAborted();
    }
  }

  async #fetch(path, options) {
    try {
      return await fetch(path, { ...options, credentials: "omit", cache: "no-store", redirect: "error" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, { message: "the service cannot be reached; is it still running?" }, null);
    }
  }
}

// Events of a body in the form of server-sent events, as pairs of the name and the parsed data.
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      text = (text + (value ?? "")).replaceAll("\r\n", "\n");
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const lines = block.split("\n").map((line) => /^(\w+): ?(.*)$/.exec(line)).filter(Boolean);
        const data = lines.filter(([, field]) => field === "data").map(([, , rest]) => rest).join("\n");
        if (data) yield [lines.find(([, field]) => field === "event")?.[2] ?? "message", JSON.parse(data)];
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops listening lets the service stop, too
  }
}
