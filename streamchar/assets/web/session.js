// The connection: typed events in, messages out; after a loss it restores the session where the picture ends.

const RETRIES = 12;

export class Session {
  // handlers: one function per event type, and `piece(bytes)`, `lost(attempt)`, `over(reason)`, `frames()`
  constructor(url, handlers) {
    this.url = url;
    this.handlers = handlers;
    this.id = null;
    this.unsaid = new Map();
    this.count = 0;
    this.tries = 0;
    this.done = false;
    this.live = false;
  }

  start(options) {
    this.opening = { type: "start", protocol: 1, ...options };
    this.connect();
  }

  say(text) {
    const id = ++this.count;
    this.unsaid.set(id, text);
    this.send({ type: "say", text, id });
  }

  // Before `ready` nothing but the opening goes out; texts wait.
  send(message, opening = false) {
    if ((this.live || opening) && this.socket && this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  stop() {
    this.send({ type: "stop" }, true);
  }

  close() {
    this.done = true;
    if (this.socket) this.socket.close();
  }

  connect() {
    const socket = new WebSocket(this.url);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    socket.onopen = () => {
      this.send(this.id ? { type: "restore", protocol: 1, session: this.id, frames: this.handlers.frames() } : this.opening, true);
    };
    socket.onmessage = (message) => {
      if (typeof message.data !== "string") return this.handlers.piece(message.data);
      this.take(JSON.parse(message.data));
    };
    socket.onclose = () => this.lost();
  }

  take(event) {
    if (event.type === "ready") {
      this.id = event.session;
      this.tries = 0;
      this.live = true;
    }
    if (event.type === "said") this.unsaid.delete(event.id);
    if (event.type === "stopped" && event.reason !== "restart") this.done = true;
    if (event.type === "error" && event.fatal && event.code !== "shutting-down") this.done = true;
    if (event.type === "error" && event.code === "unknown-session") this.done = true;
    const handler = this.handlers[event.type];
    if (handler) handler(event);
    if (event.type === "ready") {
      for (const [id, text] of this.unsaid) this.send({ type: "say", text, id });
    }
  }

  lost() {
    this.live = false;
    if (this.done || !this.id || this.tries >= RETRIES) return this.handlers.over(this.done ? "ended" : "lost");
    this.tries += 1;
    this.handlers.lost(this.tries);
    setTimeout(() => this.connect(), Math.min(4000, 250 * 1.5 ** this.tries));
  }
}
