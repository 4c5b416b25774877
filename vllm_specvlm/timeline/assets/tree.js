// One step's tree, from the text so far on the left: the accepted path runs straight, what was not taken hangs below.

const PITCH = 33, HEIGHT = 26, LONGEST = 16;
let gap = 30;  // between columns
const ruler = document.createElement("canvas").getContext("2d");

function drawTree(number) {
  const step = steps[number];
  const nodes = nodesOf(step, number);
  const children = new Map();
  nodes.forEach((node, i) => children.set(node.parent, [...(children.get(node.parent) ?? []), i]));
  for (const of of children.values()) of.sort((a, b) => nodes[b].first - nodes[a].first || a - b);

  settle(0, nodes, children);

  // Columns are as wide as their widest node.
  const widths = [];
  ruler.font = `14px ${getComputedStyle(document.documentElement).fontFamily}`;
  for (const node of nodes) {
    node.width = Math.max(30, ruler.measureText(node.label).width + 20 + (node.chance ? 40 : 0));
    widths[node.depth] = Math.max(widths[node.depth] ?? 0, node.width);
  }
  // They move together before the tree is wider than the window.
  const left = byId("tree").clientWidth - 40 - widths.reduce((sum, width) => sum + width, 0);
  gap = Math.max(14, Math.min(byId("tree").clientWidth < 600 ? 18 : 30, left / Math.max(1, widths.length - 1)));
  const lefts = [1];
  widths.forEach((width, depth) => (lefts[depth + 1] = lefts[depth] + width + gap));
  const svgWidth = lefts[widths.length] - gap + 2;
  const svgHeight = Math.max(...nodes.map((node) => node.row)) * PITCH + HEIGHT + 4;
  const svg = make("svg", { width: svgWidth, height: svgHeight, role: "img", "aria-label": "Tree of the step" });
  const links = make("g"), boxes = make("g");
  nodes.forEach((node, i) => {
    node.x = lefts[node.depth];
    node.y = 2 + node.row * PITCH;
    if (i && node.kind !== "accepted") links.append(link(nodes[node.parent], node));
    boxes.append(box(node));
  });
  for (const node of nodes) if (node.kind === "accepted") links.append(link(nodes[node.parent], node));
  svg.append(links, boxes);
  const frame = byId("tree");
  frame.replaceChildren(svg);
  frame.scrollTop = frame.scrollLeft = 0;
  fade();
}

// What goes on beyond the right edge fades out, as a sign that it does.
function fade() {
  const frame = byId("tree");
  frame.classList.toggle("more", frame.scrollLeft + frame.clientWidth < frame.scrollWidth - 4);
}

byId("tree").addEventListener("scroll", fade);

// Rows: a first child stands on its parent's row, so that paths are straight, and each further one as high as it goes
// without touching what was placed before. `free` is the first free row of each column.
function settle(i, nodes, children, row = 0, free = []) {
  const node = nodes[i];
  node.row = row;
  free[node.depth] = row + 1;
  (children.get(i) ?? []).forEach((child, at) => {
    let start = row;
    // The straight path from a further child on must be free as a whole.
    for (let deep = child; at && deep !== undefined; deep = children.get(deep)?.[0]) {
      start = Math.max(start, free[nodes[deep].depth] ?? 0);
    }
    settle(child, nodes, children, start, free);
  });
}

// The root, then the drafted nodes with the token of the target's own among them.
function nodesOf(step, number) {
  const before = timeline.pieces.slice(Math.max(0, step.start - 3), step.start).join("");
  const sofar = number ? visible(before.trimStart()) : "prompt";
  const root = [...sofar].length > LONGEST ? "…" + [...sofar].slice(-LONGEST).join("") : sofar;
  const full = number ? before : `${timeline.prompt_tokens} tokens of prompt`;
  const nodes = [{ kind: "root", label: root, full, parent: -1, depth: 0, first: 0 }];
  const path = new Set(step.path);
  step.nodes.forEach((token, i) => {
    const parent = step.parents[i] + 1;
    const accepted = path.has(i);
    nodes.push({
      kind: accepted ? "accepted" : "rejected",
      token,
      full: timeline.labels[number][i],
      parent,
      depth: nodes[parent].depth + 1,
      first: accepted ? 2 : 0,
      chance: percent(step.log_probs[i]),
      logProb: step.log_probs[i],
      total: step.log_probs[i] + (parent ? nodes[parent].total : 0),
      unused: accepted && step.path.indexOf(i) >= step.kept,
    });
  });
  const end = step.path.length ? step.path[step.path.length - 1] + 1 : 0;
  const ended = step.kept < step.tokens.length;
  nodes.push({
    kind: "own",
    token: step.tokens[step.tokens.length - 1],
    full: timeline.labels[number][step.nodes.length],
    parent: end,
    depth: nodes[end].depth + 1,
    first: 1,
    unused: ended,
  });
  for (const node of nodes) node.label ??= node.kind === "own" && ended ? "end" : shorten(visible(node.full), LONGEST);
  return nodes;
}

function link(from, to) {
  const x0 = from.x + from.width, y0 = from.y + HEIGHT / 2, x1 = to.x, y1 = to.y + HEIGHT / 2;
  const bend = gap * 0.9;
  const turn = `M${x0} ${y0}H${x1 - gap}C${x1 - gap + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}`;
  const d = y0 === y1 ? `M${x0} ${y0}H${x1}` : turn;
  const drawn = make("path", { class: `link ${to.kind}`, d });
  if (to.kind !== "own") drawn.setAttribute("stroke-width", (1 + 5 * Math.exp(to.logProb)).toFixed(2));
  return drawn;
}

function box(node) {
  const place = `translate(${node.x} ${node.y})`;
  const group = make("g", { class: `${node.kind}${node.unused ? " unused" : ""}`, transform: place });
  const fates = { accepted: "accepted", rejected: "not what the target says", own: "the target's own token" };
  const lines = [JSON.stringify(node.full)];
  if (node.token !== undefined) lines.push(`token ${node.token}`);
  if (node.chance) lines.push(`the draft: ${percent(node.logProb)} here, ${percent(node.total)} along its path`);
  if (fates[node.kind]) lines.push(fates[node.kind] + (node.unused ? ", beyond the end of the answer" : ""));
  group.append(make("title", {}, lines.join("\n")));
  group.append(make("rect", { width: node.width, height: HEIGHT, rx: 7 }));
  const text = make("text", { x: 10, y: HEIGHT / 2 });
  const spaced = node.kind !== "root" && node.label.startsWith(" ");
  text.append(...(spaced ? [make("tspan", { class: "space" }, "·"), node.label.slice(1)] : [node.label]));
  group.append(text);
  if (node.chance) {
    const at = { class: "chance", x: node.width - 8, y: HEIGHT / 2 + 0.5, "text-anchor": "end" };
    group.append(make("text", at, node.chance));
  }
  return group;
}
