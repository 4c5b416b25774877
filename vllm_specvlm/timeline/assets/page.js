// Going from step to step: keys, buttons, play, and the address, which names the step.

const MODES = {
  prompt: ["", `The target reads ${timeline.prompt_tokens} tokens and gives its first own.`],
  fixed: ["no planner", ""],
  none: ["not drafted", "There was nothing to draft for this step."],
  plain: ["planner: plain", "The planner has the target decode this step without a draft."],
  probe: ["planner: probe", "The planner drafts to learn what drafts are worth."],
  trees: ["planner: trees", ""],
};
const SLOWEST = Math.max(...(steps.length > 1 ? steps.slice(1) : steps).map(seconds));
let current = 0, playing = null;

function show(number) {
  current = Math.min(Math.max(number, 0), steps.length - 1);
  drawHeading();
  drawTree(current);
  drawAnswer(current);
  markStrip(current);
  byId("previous").disabled = current === 0;
  byId("next").disabled = current === steps.length - 1;
  try {
    history.replaceState(null, "", `#step=${current}`);
  } catch {
    // Frames without an address of their own refuse, and browsers that are asked too often. Only the link is lost.
  }
}

function drawHeading() {
  const step = steps[current], [mode, why] = MODES[step.mode];
  const of = make("small", {}, current ? ` of ${steps.length - 1}` : "");
  byId("step-number").replaceChildren(current ? `Step ${current}` : "Prompt", of);
  byId("step-mode").textContent = mode;
  byId("step-mode").className = `chip ${step.mode}`;
  byId("step-mode").hidden = !mode;
  const words = byId("step-words");
  words.replaceChildren();
  if (step.nodes.length) {
    const drafted = Math.min(step.path.length, step.kept);
    words.append(
      make("strong", {}, `+${count(step.kept, "token")}`), ": ",
      make("b", { class: "accepted" }, `${drafted} accepted`), ` of ${step.nodes.length} drafted`,
    );
    if (step.kept > drafted) words.append(", ", make("b", { class: "own" }, "1 own"));
    words.append(step.kept < step.tokens.length ? "; the answer ends within." : ".");
  }
  if (why) words.append(` ${why}`);
  else if (!step.nodes.length) words.append("No tree came of it: 1 token, as in plain decoding.");
  drawTime(step);
}

function drawTime(step) {
  const whole = seconds(step);
  const bar = make("div", { class: "bar" });
  const length = current ? whole / SLOWEST : 1;
  const parts = ["draft", "verify", "other"].map((part) => {
    const piece = make("i", { class: part });
    piece.style.width = `${(100 * length * step[part]) / (whole || 1)}%`;
    bar.append(piece);
    const named = part === "verify" && !current ? "prompt" : part;
    return make("span", { class: part }, make("b", {}, milliseconds(step[part])), ` ${named}`);
  });
  parts[0].title = `${count(step.levels, "level")} grown; ${milliseconds(step.draft_model)} ms in the draft's passes`;
  parts[1].title = "the target's pass over the tree, its draw, acceptance";
  parts[2].title = "vLLM's scheduler and text handling";
  byId("step-time").replaceChildren(bar, ...parts, make("span", {}, `= ${milliseconds(whole)} ms`));
}

function play(on) {
  clearInterval(playing);
  playing = null;
  if (on && current === steps.length - 1) show(0);
  if (on) {
    // A long trace is over within a minute, a short one leaves time to read.
    const pause = Math.min(Math.max(60000 / steps.length, 120), 1100);
    playing = setInterval(() => (current < steps.length - 1 ? show(current + 1) : play(false)), pause);
  }
  byId("play").classList.toggle("on", playing !== null);
  byId("play").setAttribute("aria-pressed", playing !== null);
}

const KEYS = {
  ArrowLeft: () => show(current - 1),
  ArrowRight: () => show(current + 1),
  Home: () => show(0),
  End: () => show(steps.length - 1),
  PageUp: () => show(current - 10),
  PageDown: () => show(current + 10),
  v: toggleSeen,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " " && event.target.tagName !== "BUTTON") {
    event.preventDefault();
    play(playing === null);
  } else if (KEYS[event.key]) {
    event.preventDefault();
    if (event.key !== "v") play(false);
    KEYS[event.key]();
  }
});
byId("previous").addEventListener("click", () => (play(false), show(current - 1)));
byId("next").addEventListener("click", () => (play(false), show(current + 1)));
byId("play").addEventListener("click", () => play(playing === null));

const asked = () => Number(/^#step=(\d+)$/.exec(location.hash)?.[1] ?? Math.min(1, steps.length - 1));
window.addEventListener("hashchange", () => show(asked()));
window.addEventListener("resize", () => (drawStrip(), markStrip(current)));
drawStrip();
show(asked());
