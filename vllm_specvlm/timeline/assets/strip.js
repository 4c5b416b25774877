// All steps in one strip: upwards the tokens they brought, downwards the time they took.

const LEFT = 26, WIDEST = 56;
const columns = [];
let pitch = 1;

function drawStrip() {
  const frame = byId("strip");
  const width = Math.max(frame.clientWidth, 60), height = frame.clientHeight;
  const up = 0.5 * height, down = 0.37 * height, middle = up + 0.07 * height;
  pitch = Math.min(WIDEST, (width - LEFT) / steps.length);
  const gap = pitch > 5 ? Math.min(4, pitch * 0.2) : 0;
  const most = Math.max(...steps.map((step) => step.kept));
  // The prompt takes as long as many steps: its bar is cut off, and shows it.
  const slowest = Math.max(...(steps.length > 1 ? steps.slice(1) : steps).map(seconds));
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  svg.append(make("rect", { class: "here", id: "here", y: 0, height, width: pitch, rx: Math.min(4, pitch / 3) }));
  columns.length = 0;
  steps.forEach((step, number) => {
    const column = make("g", { class: "column" });
    const x = LEFT + number * pitch + gap / 2, wide = Math.max(pitch - gap, 0.5);
    const drafted = Math.min(step.path.length, step.kept);
    const unit = up / most;
    const bar = (kind, y, height) => {
      if (height > 0) column.append(make("rect", { class: kind, ...rounded({ x, y, width: wide, height }) }));
    };
    bar("accepted", middle - 2 - unit * drafted, unit * drafted);
    bar("own", middle - 2 - unit * step.kept, unit * (step.kept - drafted));
    let y = middle;
    for (const part of ["draft", "verify", "other"]) {
      const tall = Math.min((step[part] / slowest) * down, middle + down - y);
      bar(part, y, tall);
      y += tall;
    }
    if (seconds(step) > 1.01 * slowest) bar("cut", middle + down - 7, 2.5);
    const name = number ? `step ${number}` : "prompt";
    column.append(make("title", {}, `${name}: ${count(step.kept, "token")}, ${milliseconds(seconds(step))} ms`));
    columns.push(column);
    svg.append(column);
  });
  svg.append(
    make("line", { class: "axis", x1: LEFT, x2: LEFT + pitch * steps.length, y1: middle - 1, y2: middle - 1 }),
    make("text", { x: LEFT - 5, y: middle - up + 6, "text-anchor": "end" }, most),
    make("text", { x: LEFT - 5, y: middle + down, "text-anchor": "end" }, Math.max(1, Math.round(1000 * slowest))),
    make("text", { x: LEFT - 5, y: middle + down - 11, "text-anchor": "end" }, "ms"),
  );
  frame.replaceChildren(svg);
}

const rounded = (sizes) => Object.fromEntries(Object.entries(sizes).map(([name, size]) => [name, size.toFixed(2)]));

function markStrip(current) {
  columns.forEach((column, number) => {
    column.classList.toggle("now", number === current);
    column.classList.toggle("past", number < current);
  });
  byId("here").setAttribute("x", LEFT + current * pitch);
  const frame = byId("strip");
  frame.setAttribute("aria-valuemin", 0);
  frame.setAttribute("aria-valuemax", steps.length - 1);
  frame.setAttribute("aria-valuenow", current);
  frame.setAttribute("aria-valuetext", columns[current].textContent);
}

function seek(event) {
  const at = Math.floor((event.clientX - byId("strip").getBoundingClientRect().left - LEFT) / pitch);
  show(Math.min(Math.max(at, 0), steps.length - 1));
}

byId("strip").addEventListener("pointerdown", (event) => {
  byId("strip").setPointerCapture(event.pointerId);
  seek(event);
});
byId("strip").addEventListener("pointermove", (event) => event.buttons && seek(event));
