// A clip's video, from the file beside this page, with a line that runs over its pictures and sound.
document.querySelectorAll(".clip[data-video]").forEach((clip) => {
  const line = clip.querySelector(".head-line");
  const timeline = clip.querySelector(".timeline");
  let video = null;
  const follow = () => {
    if (!video || !line) return;
    line.style.display = "block";
    line.style.left = (100 * video.currentTime) / (video.duration || Number(clip.dataset.seconds)) + "%";
    if (!video.paused) requestAnimationFrame(follow);
  };
  const play = (part) => {
    if (!video) {
      video = document.createElement("video");
      video.controls = true;
      video.playsInline = true;
      video.src = clip.dataset.video;
      video.addEventListener("play", () => {
        document.querySelectorAll("video").forEach((other) => other !== video && other.pause());
        follow();
      });
      video.addEventListener("seeked", follow);
      video.addEventListener("error", () => {
        const note = document.createElement("p");
        note.className = "note";
        note.textContent = "The video is not where it was when this page was written: " + clip.dataset.video;
        video.replaceWith(note);
        clip.querySelector("button.play")?.remove();
      });
      clip.querySelector("header").after(video);
    }
    const start = () => {
      if (part !== null) video.currentTime = part * video.duration;
      video.play().catch(() => {});
    };
    if (video.readyState >= 1) start();
    else video.addEventListener("loadedmetadata", start, { once: true });
  };
  clip.querySelector("button.play")?.addEventListener("click", () => play(null));
  timeline?.addEventListener("click", (event) => {
    const box = timeline.getBoundingClientRect();
    play((event.clientX - box.left) / box.width);
  });
});
// A link to a clip that is folded away opens what hides it.
const unfold = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const fold = target && target.closest("details");
  if (fold) { fold.open = true; target.scrollIntoView(); }
};
addEventListener("hashchange", unfold);
unfold();
