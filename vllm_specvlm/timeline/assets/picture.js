// What the draft sees of the picture, drawn over it.

const seen = timeline.picture && timeline.picture.sight;
const entire = seen && (seen.how === "all" || seen.how === "shared");

function drawSeen() {
  const box = timeline.picture.box;
  const words = {
    all: "Seen through the draft's own tower, every token kept.",
    shared: "Seen through the target's own first layers, every token kept.",
    blind: "The draft does not see the picture.",
    prune: "The head keeps the bright ones and never reads the others.",
    pool: "The head reads means: each patch is one token.",
    conv: "The head reads combinations of neighbours: each patch is one token.",
    none: "The head reads them all.",
  };
  const kept = seen ? (entire ? seen.visual_tokens : seen.patches.length) : 0;
  byId("seen-toggle").textContent = seen ? `${kept} of ${count(seen.visual_tokens, "visual token")}` : "not seen";
  byId("seen-words").textContent = seen
    ? (words[seen.how] ?? `The head reads answers (${seen.how}): the stronger the colour, the more a place counts.`)
    : "No draft was made that could have looked.";
  if (!seen) return;
  const over = byId("seen"), row = byId("seen-row");
  const placed = seen.how === "blind" ? [1, 1] : box && seen.grid;
  const [rows, columns] = placed || [1, seen.visual_tokens];
  const target = placed ? over : row;
  if (!placed) {
    row.removeAttribute("hidden");
    byId("seen-words").append(" Where they lie in the picture is not known for this model: the row shows their order.");
  }
  const [left, top, right, bottom] = box || [0, 0, 1, 1];
  Object.assign(over.style, {
    left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`,
  });
  target.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
  target.setAttribute("preserveAspectRatio", "none");
  if (seen.how === "blind") {
    target.append(make("rect", { class: "shade", width: columns, height: rows }));
    return;
  }
  const owner = shareOut(rows * columns);
  const whole = entire || seen.how === "none";
  const asked = seen.how === "resampler" || seen.how === "global"; // queries look everywhere, here more and there less
  owner.forEach(({ patch, weight }, cell) => {
    const at = { class: "cell", x: cell % columns, y: Math.floor(cell / columns), width: 1, height: 1 };
    if (patch < 0) target.append(make("rect", { ...at, class: "cell shade" }));
    else if (!whole && seen.how !== "prune") {
      const fill = `hsl(${(patch * 137.5) % 360} 90% 55%)`;
      const opacity = asked ? 0.04 + 0.6 * weight : 0.06 + 0.22 * weight;
      target.append(make("rect", { ...at, fill, "fill-opacity": opacity.toFixed(3) }));
    }
  });
  if (!asked) drawEdges(target, owner, rows, columns, !whole && seen.how !== "prune");
}

// Per cell, the patch in which it counts most (-1: none), and how much beside the one that counts most there.
function shareOut(cells) {
  const owner = Array.from({ length: cells }, () => ({ patch: entire ? 0 : -1, share: 0, weight: 0 }));
  seen.patches.forEach(([first, shares], patch) => {
    const most = Math.max(...shares);
    shares.forEach((share, i) => {
      if (share > owner[first + i].share) owner[first + i] = { patch, share, weight: share / most };
    });
  });
  if (entire) owner.forEach((cell, i) => (cell.patch = i));
  return owner;
}

function drawEdges(target, owner, rows, columns, strong) {
  let path = "";
  const other = (a, b) => b === undefined || owner[a].patch !== owner[b].patch;
  for (let cell = 0; cell < owner.length; cell++) {
    const x = cell % columns, y = Math.floor(cell / columns);
    if (x + 1 < columns && other(cell, cell + 1)) path += `M${x + 1} ${y}v1`;
    if (y + 1 < rows && other(cell, cell + columns)) path += `M${x} ${y + 1}h1`;
  }
  const width = Math.min(2, byId("picture").clientWidth / columns / 8);
  if (strong) target.append(make("path", { class: "edge under", d: path, "stroke-width": 2 * width }));
  const edge = strong ? { class: "edge", "stroke-width": width } : { class: "edge thin", "stroke-width": width / 2 };
  target.append(make("path", { ...edge, d: path }));
}

function toggleSeen() {
  if (!seen) return;
  const shown = byId("seen-toggle").getAttribute("aria-pressed") !== "true";
  byId("seen-toggle").setAttribute("aria-pressed", shown);
  byId("seen").style.visibility = byId("seen-row").style.visibility = shown ? "visible" : "hidden";
}

if (timeline.picture) {
  drawSeen();
  byId("seen-toggle").addEventListener("click", toggleSeen);
}
