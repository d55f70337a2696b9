"use strict";

// Client of the service: multipart requests, JSON responses and server-sent events.

// A failed request.
class ApiError extends Error {
  constructor(status, { message, type = "", param = null }, retryAfter) {
    super(message);
    this.status = status; // 0: no response
    this.type = type;
    this.param = param;
    this.retryAfter = retryAfter; // seconds; null: a retry does not help
  }

  // True if another request for other regions may succeed.
  get isOfRegions() {
    return ["invalid_request_error", "server_error"].includes(this.type) && this.status !== 413 && this.retryAfter === null;
  }

  static async fromResponse(response) {
    let problem = { message: `the service responded with ${response.status} ${response.statusText}` };
    try {
      problem = (await response.json()).error ?? problem;
    } catch {
      // Not a response of the service, but of a proxy in front of it.
    }
    const wait = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
    return new ApiError(response.status, problem, Number.isNaN(wait) ? null : wait);
  }
}

// Explains the kind of an error in the words of the page's users.
function headline({ status, type }) {
  const ofStatus = { 413: "The image is too large for this service.", 503: "The service is not ready.", 504: "The request timed out." };
  const ofType = { authentication_error: "This service requires a token.", rate_limit_error: "The service is busy.", invalid_request_error: "The request is invalid." };
  return ofStatus[status] ?? ofType[type] ?? "The request failed.";
}

// Returns the description of an error, without the words that only developers need.
function details({ type, message }) {
  return type === "authentication_error" ? "Its operator gives out tokens." : message;
}

function explained(error) {
  return `${headline(error)} ${error.param ? `${error.param}: ` : ""}${details(error)}`;
}

class Service {
  // askForToken(rejected): called if the service requires another token than the rejected one (null: none was sent);
  // resolves to the token, or to null if cancelled.
  constructor(askForToken) {
    this.askForToken = askForToken;
    this.token = null; // in memory only
    this.maxRegions = Infinity; // of a request
    this.asking = null;
  }

  async model() {
    const response = await this.#send("v1/models", {});
    const model = (await response.json()).data[0];
    this.maxRegions = model.max_regions;
    return model;
  }

  async regions(image, request, signal) {
    return (await this.#post("v1/regions", image, request, signal)).json();
  }

  // Yields [event, data] of the caption stream, with the text of unfinished captions.
  async *captions(image, request, signal) {
    const response = await this.#post("v1/captions", image, { ...request, stream: true, partial: true }, signal);
    for await (const [event, data] of eventsOf(response.body)) {
      if (event === "error") throw new ApiError(0, data.error, data.error.retry_after_s);
      yield [event, data];
      if (event === "done") return;
    }
    throw new ApiError(0, { message: "the connection closed before all captions were received" }, null);
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
      const response = await this.#fetch(path, { ...options, headers });
      if (response.ok) return response;
      const error = await ApiError.fromResponse(response);
      if (response.status !== 401) throw error;
      if (token !== this.token) continue; // another request has obtained one in the meantime
      this.asking ??= this.askForToken(token).finally(() => { this.asking = null; });
      const given = await this.asking;
      if (given === null) throw error;
      this.token = given;
      options.signal?.throwIfAborted();
    }
  }

  async #fetch(path, options) {
    try {
      return await fetch(path, { ...options, credentials: "omit", cache: "no-store", redirect: "error" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, { message: "the service is unreachable; check that it is running" }, null);
    }
  }
}

// Parses a body of server-sent events; yields pairs of the event's name and its parsed data.
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
    reader.cancel().catch(() => {}); // closes the connection, which cancels the request
  }
}
