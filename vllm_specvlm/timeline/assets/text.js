"use strict";
// What all parts of the page use. Texts of the trace only ever become text nodes.

const timeline = JSON.parse(document.getElementById("timeline").textContent);
const steps = timeline.steps;
const byId = (id) => document.getElementById(id);

function make(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "path", "line", "text", "tspan", "title"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Characters that show nothing, or that turn the writing direction round, get a sign of their own.
function visible(text) {
  if (text === "") return "◌";
  const signs = { "\n": "⏎", "\t": "⇥", "\r": "␍" };
  return text.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, (c) => signs[c] ?? "◌");
}

const shorten = (text, most) => ([...text].length > most ? [...text].slice(0, most - 1).join("") + "…" : text);

function percent(logProb) {
  const p = 100 * Math.exp(logProb);
  return p > 99.5 ? ">99%" : p < 0.5 ? "<1%" : `${Math.round(p)}%`;
}

const milliseconds = (seconds) => (seconds < 0.0995 ? (1000 * seconds).toFixed(1) : (1000 * seconds).toFixed(0));
const seconds = (step) => step.draft + step.verify + step.other;
const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;

// Where each step's tokens begin in the answer, and how many of them are in it: an answer may end within a step.
let sum = 0;
for (const step of steps) {
  step.start = sum;
  step.kept = Math.min(step.tokens.length, timeline.answer.length - sum);
  sum += step.kept;
}
