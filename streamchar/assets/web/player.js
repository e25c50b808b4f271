// One continuous fragmented MP4 into a video element. The timeline is the session's: time 0 is its first frame.

const PREBUFFER = 0.3;
const BEHIND = 30;

export function supported(mime) {
  const Source = window.ManagedMediaSource || window.MediaSource;
  return Boolean(Source && Source.isTypeSupported(mime));
}

export class Player {
  constructor(video) {
    this.video = video;
    this.queue = [];
    this.parts = [];
    this.stalls = 0;
    this.wanted = true;
    this.target = null;
    this.running = false;
    video.addEventListener("waiting", () => { if (this.running) this.stalls += 1; });
    this.timer = setInterval(() => this.tend(), 100);
  }

  // A new file begins; its time 0 lies at `frames` of the session.
  async begin(mime, frames, fps) {
    this.parts.push([]);
    if (!this.buffer) {
      const Source = window.ManagedMediaSource || window.MediaSource;
      this.source = new Source();
      this.video.disableRemotePlayback = true;
      this.video.src = URL.createObjectURL(this.source);
      this.queue = [{ offset: frames / fps }];
      await new Promise((open) => this.source.addEventListener("sourceopen", open, { once: true }));
      this.buffer = this.source.addSourceBuffer(mime);
      this.buffer.mode = "segments";
      this.buffer.addEventListener("updateend", () => this.feed());
      this.feed();
    } else {
      this.queue = this.queue.filter((item) => item.bytes === undefined);
      this.queue.push({ offset: frames / fps });
      this.feed();
    }
  }

  append(bytes) {
    this.parts[this.parts.length - 1].push(bytes);
    this.queue.push({ bytes });
    this.feed();
  }

  feed() {
    const buffer = this.buffer;
    if (!buffer || buffer.updating || !this.queue.length || this.source.readyState !== "open") return this.tend();
    const item = this.queue[0];
    try {
      if (item.offset !== undefined) {
        buffer.abort();
        buffer.timestampOffset = item.offset;
        this.queue.shift();
        return this.feed();
      }
      if (this.video.currentTime - this.start() > 2 * BEHIND) {
        buffer.remove(0, this.video.currentTime - BEHIND);
        return undefined;
      }
      buffer.appendBuffer(item.bytes);
      this.queue.shift();
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      buffer.remove(0, Math.max(0.1, this.video.currentTime - 5));
    }
    return this.tend();
  }

  start() {
    const ranges = this.video.buffered;
    return ranges.length ? ranges.start(0) : 0;
  }

  end() {
    const ranges = this.video.buffered;
    return ranges.length ? ranges.end(ranges.length - 1) : 0;
  }

  // Go there as soon as it is buffered: where listening begins after an interrupt.
  jump(at) {
    this.target = at;
    this.tend();
  }

  // Start when enough is there, step over gaps, and never seek otherwise.
  tend() {
    const video = this.video;
    const ranges = video.buffered;
    if (!this.buffer || !ranges.length) return;
    if (this.target !== null && this.end() > this.target + 0.1) {
      if (video.currentTime < this.target) video.currentTime = this.target + 0.02;
      this.target = null;
      video.muted = false;
    }
    for (let i = 0; i < ranges.length; i += 1) {
      const before = i === 0 ? -1 : ranges.end(i - 1);
      if (video.currentTime < ranges.start(i) && video.currentTime >= before - 0.15) {
        video.currentTime = ranges.start(i) + 0.01;
        break;
      }
    }
    this.nudge();
    if (this.wanted && video.paused && this.end() - video.currentTime >= PREBUFFER) {
      this.running = true;
      const playing = video.play();
      if (playing) playing.catch(() => { this.blocked = true; });
    }
  }

  // A browser that ran dry may wait for more than the server gives ahead: after a second a seek in place wakes it.
  nudge() {
    const video = this.video;
    const now = performance.now();
    const stuck = this.wanted && !video.paused && !video.seeking && video.readyState < 3 && this.end() - video.currentTime > PREBUFFER;
    if (!stuck || this.stuckAt === undefined) this.stuckAt = stuck ? now : undefined;
    else if (now - this.stuckAt > 1000) {
      this.stuckAt = undefined;
      this.nudges = (this.nudges || 0) + 1;
      video.currentTime += 0.001;
    }
  }

  pause() {
    this.wanted = false;
    this.running = false;
    this.video.pause();
  }

  resume() {
    this.wanted = true;
    this.tend();
  }

  finish() {
    if (this.source && this.source.readyState === "open" && this.buffer && !this.buffer.updating && !this.queue.length) this.source.endOfStream();
    this.running = false;
    clearInterval(this.timer);
  }

  close() {
    clearInterval(this.timer);
    this.running = false;
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
  }

  // The take so far, one file for each connection.
  files() {
    return this.parts.filter((part) => part.length).map((part) => new Blob(part, { type: "video/mp4" }));
  }
}
